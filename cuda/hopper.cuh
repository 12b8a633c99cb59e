// The kernel of the Hopper family: TMA, wgmma, warp specialisation, persistent blocks. For sm_90a only.
//
// Columns of W are the rows of the matrix instruction (64 for each warpgroup) and rows of the input its
// columns, so that a tile may have as few as 16 input rows, int8 weights can be widened in registers, and
// what a column needs in the end is held by one thread. A tile's results therefore pass through shared memory
// (stmatrix.trans) on their way out.
//
// One producer thread fills a ring of stages; kGroups warpgroups compute 64 columns each. kShare: blocks of a
// cluster that compute the same rows and load them together (multicast).
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/launch.h"
#include "cuda/output.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/widen.cuh"

namespace qkvgemm::cuda::hopper {

constexpr int kSharedLimit = 227 * 1024;

struct Params : Product {
  int tiles_rows, tiles_columns;  // the latter in units of what a cluster computes
  bool evict_first;               // W is read once
  bool copy_stores;               // the copy engine writes the results, through Maps::y
};

struct Maps {
  CUtensorMap rows, y[kMaxSplits];
};

template <typename T_, Packing kPacking_, int kGroups_, int kTokens_, int kShare_>
struct Config {
  using T = T_;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  using Matrix = Wgmma<Element, kTokens_>;
  using Accumulator = typename Matrix::Accumulator;
  static constexpr int kGroups = kGroups_, kTokens = kTokens_, kShare = kShare_;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kPieceBytes = kWiden ? 4096 : 8192;
  static constexpr int kPieceDepth = kInt8Rows ? 128 : 64;
  static constexpr int kRowBytes = kTokens * 128;
  static constexpr int kStageBytes = kRowBytes + kGroups * kPieceBytes;
  static constexpr int kOutBytes = kTokens * 128;  // results of one warpgroup
  static constexpr int kStatisticsBytes =
      kTokens * static_cast<int>(sizeof(RowStatistics));  // one copy a warpgroup
  static constexpr int kFixedBytes = 1024 + kGroups * (kOutBytes + kStatisticsBytes);
  static constexpr int kMaxStages = (kSharedLimit - kFixedBytes - 512) / kStageBytes;
  static constexpr int kStages = kMaxStages < 16 ? kMaxStages : 16;
  static constexpr int kSharedBytes = kFixedBytes + kStages * kStageBytes;
};

__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void GroupSync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// Where a cluster's tile lies. Eight tiles of rows at a time, then along the columns: what runs together then
// shares both operands in the L2 cache.
struct Place {
  int rows, columns;
  __device__ Place(const Params& p, int tile) {
    constexpr int kBand = 8;
    const int band = tile / (kBand * p.tiles_columns), rest = tile - band * kBand * p.tiles_columns;
    const int height = min(kBand, p.tiles_rows - band * kBand);
    columns = rest / height;
    rows = band * kBand + rest - columns * height;
  }
};

struct Ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void Next(int stages) {
    if (++stage == stages) stage = 0, parity ^= 1;
  }
};

template <typename C>
struct Block {
  const Params& p;
  const Maps& maps;
  uint32_t stages, out, full, empty;  // shared addresses
  int rank;                           // in the cluster

  __device__ __forceinline__ uint32_t Full(int stage) const { return full + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return empty + 8 * stage; }
  __device__ __forceinline__ uint32_t Statistics(int group) const {
    return out + C::kGroups * C::kOutBytes + group * C::kStatisticsBytes;
  }
  __device__ __forceinline__ int FirstPieceRow(const Place& place) const {
    return (place.columns * C::kShare + rank) * C::kGroups;
  }

  __device__ __forceinline__ void LoadWeights(const Place& place, int kb, int stage, uint64_t policy) const {
    const int first = FirstPieceRow(place);
    const int groups = max(0, min(C::kGroups, p.piece_rows - first));
    BarrierExpect(Full(stage), C::kRowBytes + groups * C::kPieceBytes);
    const char* source = static_cast<const char*>(p.weights) +
                         (static_cast<int64_t>(first) * p.pieces_per_row + kb) * C::kPieceBytes;
    uint32_t target = stages + stage * C::kStageBytes + C::kRowBytes;
    for (int g = 0; g < groups; ++g) {
      CopyBulk(target, source, C::kPieceBytes, Full(stage), policy);
      source += static_cast<int64_t>(p.pieces_per_row) * C::kPieceBytes;
      target += C::kPieceBytes;
    }
  }
  __device__ __forceinline__ void LoadRows(const Place& place, int kb, int stage) const {
    const int row = place.rows * C::kTokens;
    const uint32_t target = stages + stage * C::kStageBytes;
    if constexpr (C::kShare == 1) {
      CopyTile(target, &maps.rows, kb * C::kPieceDepth, row, Full(stage));
    } else {
      constexpr int kPart = C::kTokens / C::kShare;
      CopyTileMulticast(target + rank * kPart * 128, &maps.rows, kb * C::kPieceDepth, row + rank * kPart,
                        Full(stage), (1 << C::kShare) - 1);
    }
  }

  __device__ void Produce(int cluster, int clusters) const {
    const int tiles = p.tiles_rows * p.tiles_columns;
    const uint64_t policy = p.evict_first ? PolicyEvictFirst() : PolicyEvictNormal();
    // Weights never depend on the kernel before: as many as fit are under way before its end is waited for.
    int loaded = min(C::kStages, p.pieces_per_row);
    for (int i = 0; i < loaded; ++i) LoadWeights(Place(p, cluster), i, i, policy);
    WaitForPrevious();
    Ring ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const Place place(p, tile);
      for (int kb = 0; kb < p.pieces_per_row; ++kb) {
        if (loaded > 0) {
          --loaded;
        } else {
          BarrierWait(Empty(ring.stage), ring.parity ^ 1);
          LoadWeights(place, kb, ring.stage, policy);
        }
        LoadRows(place, kb, ring.stage);
        ring.Next(C::kStages);
      }
    }
  }

  __device__ __forceinline__ void Release(int stage) const {
    if constexpr (C::kShare == 1) {
      if (threadIdx.x % 128 == 0) BarrierArrive(Empty(stage));
    } else {
      if (threadIdx.x % 128 < C::kShare) BarrierArriveRemote(Empty(stage), threadIdx.x % 128);
    }
  }

  // What a tile needs in the end, asked for while its last products run.
  struct Late {
    Column low, high;   // of columns g and g + 8 of the warp's 16
    float4 statistics;  // of two rows, for the warpgroup's copy
  };
  __device__ __forceinline__ void Fetch(const Place& place, int group, Late& late, bool first_tile) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, thread = threadIdx.x % 128;
    const int column =
        min((FirstPieceRow(place) + group), p.piece_rows - 1) * kPieceColumns + warp * 16 + lane / 4;
    late.low = p.columns[column];
    late.high = p.columns[column + 8];
    // The statistics are the work of the kernel before, and the outputs may be its inputs.
    if (first_tile) WaitForPrevious();
    late.statistics = {0, 1, 0, 1};
    if (p.statistics && thread < C::kTokens / 2)
      late.statistics = reinterpret_cast<const float4*>(p.statistics)[place.rows * (C::kTokens / 2) + thread];
  }

  // acc: at [4 j + 2 i + e] the sum for column g + 8 i of the warp's 16 and input row 8 j + 2 t + e.
  __device__ __forceinline__ void Multiply(typename C::Accumulator (&acc)[C::kTokens / 2], Ring& ring,
                                           int group, const Place& place, bool first_tile, Late& late) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    constexpr int kLateBlocks = 4;
    const int fetch_at = max(0, p.pieces_per_row - kLateBlocks);
    for (int kb = 0; kb < p.pieces_per_row; ++kb) {
      if (kb == fetch_at) Fetch(place, group, late, first_tile);
      BarrierWait(Full(ring.stage), ring.parity);
      const uint32_t at = stages + ring.stage * C::kStageBytes,
                     weights = at + C::kRowBytes + group * C::kPieceBytes;
      const uint64_t b = WgmmaDescriptor(at);
      if constexpr (C::kWiden) {
        uint32_t a[4][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t w[4];
          LoadVector(w, weights + ((warp * 2 + h) * 32 + lane) * 16);
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            Widen<typename C::T>(w[2 * s], a[2 * h + s][0], a[2 * h + s][1]);
            Widen<typename C::T>(w[2 * s + 1], a[2 * h + s][2], a[2 * h + s][3]);
          }
        }
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < 4; ++s) C::Matrix::Rs(acc, a[s], b + s * 2, kb > 0 || s > 0);
        WgmmaCommit();
        WgmmaWait<0>();
        Release(ring.stage);
      } else {
        const uint64_t a = WgmmaDescriptor(weights);
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < 4; ++s) C::Matrix::Ss(acc, a + s * 2, b + s * 2, kb > 0 || s > 0);
        WgmmaCommit();
        WgmmaWait<0>();
        Release(ring.stage);
      }
      ring.Next(C::kStages);
    }
  }

  __device__ __forceinline__ void Write(const Place& place,
                                        const typename C::Accumulator (&acc)[C::kTokens / 2], int group,
                                        const Late& late) const {
    using T = typename C::T;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, t = lane % 4, thread = threadIdx.x % 128;
    const int column0 = (FirstPieceRow(place) + group) * kPieceColumns, row0 = place.rows * C::kTokens;
    const uint32_t results = out + group * C::kOutBytes;
    if (column0 >= p.n) return;  // the same for the whole warpgroup
    const uint32_t statistics = Statistics(group);
    if (thread < C::kTokens / 2)
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(statistics + thread * 16),
                   "f"(late.statistics.x), "f"(late.statistics.y), "f"(late.statistics.z),
                   "f"(late.statistics.w)
                   : "memory");
    if (p.copy_stores && thread == 0) StoreWaitRead<0>();  // the results of the tile before have left
    GroupSync(group);
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; j += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto* d = acc + (j + i) * 4;
        float4 s;  // mean and rstd of two rows
        asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                     : "=f"(s.x), "=f"(s.y), "=f"(s.z), "=f"(s.w)
                     : "r"(statistics + ((j + i) * 8 + t * 2) * 8)
                     : "memory");
        const RowStatistics even = {s.x, s.y}, odd = {s.z, s.w};
        r[2 * i] = Pack2<T>(Finish(late.low, static_cast<float>(d[0]), even),
                            Finish(late.low, static_cast<float>(d[1]), odd));
        r[2 * i + 1] = Pack2<T>(Finish(late.high, static_cast<float>(d[2]), even),
                                Finish(late.high, static_cast<float>(d[3]), odd));
      }
      const int token = j * 8 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
      StoreTransposed(results + token * 128 + ((piece ^ (token & 7)) * 16), r);
    }
    if (p.copy_stores) FenceForCopies();
    GroupSync(group);
    int split = 0;
    while (split + 1 < p.splits && column0 >= p.end[split]) ++split;
    if (!p.copy_stores) {
      for (int token = thread / 8; token < C::kTokens && row0 + token < p.m; token += 16) {
        uint32_t v[4];
        LoadVector(v, results + token * 128 + ((thread % 8 ^ (token & 7)) * 16));
        StoreElements<T>(v, row0 + token, column0 + thread % 8 * 8, split);
      }
    } else if (thread == 0 && p.y[split] != nullptr) {
      const int start = split ? p.end[split - 1] : 0;
      StoreTile(&maps.y[split], column0 - start, row0, results);
      StoreCommit();
    }
  }

  // Eight columns that need not belong to one output; the first is of `split` or behind it.
  template <typename T>
  __device__ __forceinline__ void StoreElements(const uint32_t (&v)[4], int row, int column,
                                                int split) const {
    while (split + 1 < p.splits && column >= p.end[split]) ++split;
    int start = split ? p.end[split - 1] : 0;
    if (p.vector_stores) {
      if (column < p.n && p.y[split])
        *reinterpret_cast<uint4*>(static_cast<T*>(p.y[split]) +
                                  static_cast<int64_t>(row) * (p.end[split] - start) + column - start) =
            uint4{v[0], v[1], v[2], v[3]};
      return;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (column + e >= p.n) break;
      if (column + e >= p.end[split]) start = p.end[split++];
      if (p.y[split])
        static_cast<uint16_t*>(
            p.y[split])[static_cast<int64_t>(row) * (p.end[split] - start) + column + e - start] =
            static_cast<uint16_t>(v[e / 2] >> (e % 2 * 16));
    }
  }

  __device__ void Consume(int cluster, int clusters, int group) const {
    Ring ring;
    Late late;
    const int tiles = p.tiles_rows * p.tiles_columns;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      typename C::Accumulator acc[C::kTokens / 2];
      const Place place(p, tile);
      Multiply(acc, ring, group, place, tile == cluster, late);
      Write(place, acc, group, late);
    }
    if (p.copy_stores && threadIdx.x % 128 == 0) StoreWait();
  }
};

template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    HopperKernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  extern __shared__ char shared[];
  __shared__ __align__(8) uint64_t full[C::kStages], empty[C::kStages];
  const uint32_t base = (SharedAddress(shared) + 1023) & ~1023u;
  const int rank = static_cast<int>(blockIdx.x) % C::kShare;
  const Block<C> block{
      p, maps, base, base + C::kStages * C::kStageBytes, SharedAddress(full), SharedAddress(empty), rank};
  const int cluster = blockIdx.x / C::kShare, clusters = gridDim.x / C::kShare;
  const int role = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(block.Full(s), 1);
      BarrierInit(block.Empty(s), C::kShare * C::kGroups);
    }
    BarrierInitFence();
  }
  if constexpr (C::kShare > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  if (role == 0) {
    ShrinkRegisters<C::kGroups == 3 ? 32 : 40>();
    if (threadIdx.x == 0) block.Produce(cluster, clusters);
  } else {
    GrowRegisters<C::kGroups == 3 ? 160 : 232>();
    block.Consume(cluster, clusters, role - 1);
  }
  // The other blocks of the cluster may still read or signal here.
  if constexpr (C::kShare > 1) ClusterSync();
}

}  // namespace qkvgemm::cuda::hopper
