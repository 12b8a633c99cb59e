// Any number of rows on Hopper: TMA, wgmma, warp specialisation, persistent blocks.
//
// Columns of W are the rows of the matrix instruction (64 for each warpgroup) and rows of the input its columns, so that
// a tile may have as few as 16 input rows, int8 weights can be widened in registers, and what a column needs in the end
// is held by one thread. A tile's results therefore pass through shared memory (stmatrix.trans) on their way out.
//
// One producer thread fills a ring of stages; kGroups warpgroups compute 64 columns each. kShare: blocks of a cluster
// that compute the same rows and load them together (multicast). kDepth: blocks of a cluster that share a tile, each
// with a part of K, and add their sums through distributed shared memory, always in the same order.
#include <algorithm>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/launch.h"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

#ifndef PENDING
#define PENDING 0
#endif

namespace qkvgemm::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;

struct Params : Product {
  int tiles_rows, tiles_columns;  // the latter in units of what a cluster computes
  bool evict_first;               // W is read once
};

template <int kGroups, int kTokens, int kShare, int kDepth>
struct Tile {};

template <typename T_, Packing kPacking_, int kGroups_, int kTokens_, int kShare_, int kDepth_>
struct Config {
  using T = T_;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  using Matrix = Wgmma<Element, kTokens_>;
  using Accumulator = typename Matrix::Accumulator;
  static constexpr int kGroups = kGroups_, kTokens = kTokens_, kShare = kShare_, kDepth = kDepth_;
  static constexpr int kCluster = kShare * kDepth;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr int kPieceBytes = kWiden ? 4096 : 8192;
  static constexpr int kPieceDepth = kInt8Rows ? 128 : 64;
  static constexpr int kRowBytes = kTokens * 128;
  static constexpr int kStageBytes = kRowBytes + kGroups * kPieceBytes;
  static constexpr int kChunk = kDepth > 1 ? 16 : kTokens < 32 ? kTokens : 32;  // input rows that are written at a time
  static constexpr int kOutBytes = kChunk * 128;                                // of one warpgroup
  static constexpr int kStatisticsBytes = kTokens * static_cast<int>(sizeof(RowStatistics));  // one copy a warpgroup
  static constexpr int kFixedBytes = 1024 + kGroups * (2 * kOutBytes + kStatisticsBytes);
  static constexpr int kMaxStages = (kSharedLimit - kFixedBytes - 512) / kStageBytes;
#ifdef STAGES
  static constexpr int kStages = kMaxStages < STAGES ? kMaxStages : STAGES;
#else
  static constexpr int kStages = kMaxStages < 16 ? kMaxStages : 16;
#endif
  static constexpr int kSharedBytes = kFixedBytes + kStages * kStageBytes;
};

__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(r[0]),
               "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void GroupSync(int group) {
  asm volatile("bar.sync %0, 128;" ::"r"(group + 1) : "memory");
}

// Bytes q + 128 as pairs of T: byte pairs (0, 1) and (2, 3) of a word.
template <typename T>
__device__ __forceinline__ void Widen(uint32_t word, uint32_t& low, uint32_t& high) {
  if constexpr (std::is_same_v<T, __half>) {
    // 0x6400 + u is 1024 + u.
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1152
    uint32_t a = __byte_perm(word, 0x64646464, 0x4140), b = __byte_perm(word, 0x64646464, 0x4342);
    const __half2 x = __hsub2(*reinterpret_cast<__half2*>(&a), offset);
    const __half2 y = __hsub2(*reinterpret_cast<__half2*>(&b), offset);
    low = *reinterpret_cast<const uint32_t*>(&x);
    high = *reinterpret_cast<const uint32_t*>(&y);
  } else {
    // 0x4300 + the low seven bits is 128 + these; the highest bit decides between 128 and 256 to subtract.
    const uint32_t pair[2] = {__byte_perm(word, 0, 0x4140), __byte_perm(word, 0, 0x4342)};
    uint32_t out[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a = (pair[i] & 0x007f007fu) | 0x43004300u, b = (pair[i] & 0x00800080u) ^ 0x43804380u;
      const __nv_bfloat162 d =
          __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
      out[i] = *reinterpret_cast<const uint32_t*>(&d);
    }
    low = out[0], high = out[1];
  }
}

// Where a cluster's tile lies. Eight tiles of rows at a time, then along the columns: what runs together then shares both
// operands in the L2 cache.
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
  const CUtensorMap* map;
  uint32_t stages, out, full, empty;  // shared addresses
  uint32_t rank;
  int share_rank, depth_rank;
  int first_block, last_block;  // along K, in pieces

  __device__ __forceinline__ uint32_t Full(int stage) const { return full + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return empty + 8 * stage; }
  __device__ __forceinline__ int FirstPieceRow(const Place& place) const {
    return (place.columns * C::kShare + share_rank) * C::kGroups;
  }

  __device__ __forceinline__ void LoadWeights(const Place& place, int kb, int stage, uint64_t policy) const {
    const int first = FirstPieceRow(place);
    const int groups = max(0, min(C::kGroups, p.piece_rows - first));
    BarrierExpect(Full(stage), C::kRowBytes + groups * C::kPieceBytes);
    const char* source =
        static_cast<const char*>(p.weights) + (static_cast<int64_t>(first) * p.pieces_per_row + kb) * C::kPieceBytes;
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
      CopyTile(target, map, kb * C::kPieceDepth, row, Full(stage));
    } else {
      constexpr int kPart = C::kTokens / C::kShare;
      CopyTileMulticast(target + share_rank * kPart * 128, map, kb * C::kPieceDepth, row + share_rank * kPart,
                        Full(stage), (1 << C::kShare) - 1);
    }
  }

  __device__ void Produce(int cluster, int clusters) const {
    const int tiles = p.tiles_rows * p.tiles_columns;
    const uint64_t policy = p.evict_first ? PolicyEvictFirst() : PolicyEvictNormal();
    // Weights never depend on the kernel before: as many as fit are under way before its end is waited for.
    const Place first(p, cluster);
    const int early = min(C::kStages, last_block - first_block);
    for (int i = 0; i < early; ++i) LoadWeights(first, first_block + i, i, policy);
    WaitForPrevious();
    for (int i = 0; i < early; ++i) LoadRows(first, first_block + i, i);
    Ring ring;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      const Place place(p, tile);
      for (int kb = first_block; kb < last_block; ++kb) {
        if (tile != cluster || kb >= first_block + early) {
          BarrierWait(Empty(ring.stage), ring.parity ^ 1);
          LoadWeights(place, kb, ring.stage, policy);
          LoadRows(place, kb, ring.stage);
        }
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
    const int column = min((FirstPieceRow(place) + group), p.piece_rows - 1) * kPieceColumns + warp * 16 + lane / 4;
    late.low = p.columns[column];
    late.high = p.columns[column + 8];
    // The statistics are the work of the kernel before, and the outputs may be its inputs.
    if (first_tile) WaitForPrevious();
    late.statistics = {0, 1, 0, 1};
    if (p.statistics && thread < C::kTokens / 2)
      late.statistics = reinterpret_cast<const float4*>(p.statistics)[place.rows * (C::kTokens / 2) + thread];
  }

  // acc: at [4 j + 2 i + e] the sum for column g + 8 i of the warp's 16 and input row 8 j + 2 t + e.
  __device__ __forceinline__ void Multiply(typename C::Accumulator (&acc)[C::kTokens / 2], Ring& ring, int group,
                                           const Place& place, bool first_tile, Late& late) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    [[maybe_unused]] int previous = -1;
    constexpr int kLateBlocks = 4;
    const int fetch_at = max(first_block, last_block - kLateBlocks);
    for (int kb = first_block; kb < last_block; ++kb) {
      if (kb == fetch_at) Fetch(place, group, late, first_tile);
      BarrierWait(Full(ring.stage), ring.parity);
      const uint32_t at = stages + ring.stage * C::kStageBytes, weights = at + C::kRowBytes + group * C::kPieceBytes;
      const uint64_t b = WgmmaDescriptor(at);
      if constexpr (C::kWiden) {
        uint32_t a[4][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          uint32_t w[4];
          asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                       : "=r"(w[0]), "=r"(w[1]), "=r"(w[2]), "=r"(w[3])
                       : "r"(weights + ((warp * 2 + h) * 32 + lane) * 16));
#pragma unroll
          for (int s = 0; s < 2; ++s) {
            Widen<typename C::T>(w[2 * s], a[2 * h + s][0], a[2 * h + s][1]);
            Widen<typename C::T>(w[2 * s + 1], a[2 * h + s][2], a[2 * h + s][3]);
          }
        }
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < 4; ++s) C::Matrix::Rs(acc, a[s], b + s * 2, kb > first_block || s > 0);
        WgmmaCommit();
        WgmmaWait<0>();
        Release(ring.stage);
      } else {
        const uint64_t a = WgmmaDescriptor(weights);
        WgmmaFence();
#pragma unroll
        for (int s = 0; s < 4; ++s) C::Matrix::Ss(acc, a + s * 2, b + s * 2, kb > first_block || s > 0);
        WgmmaCommit();
        WgmmaWait<PENDING>();
#if PENDING == 0
        Release(ring.stage);
#else
        if (previous >= 0) Release(previous);
        previous = ring.stage;
#endif
      }
      ring.Next(C::kStages);
    }
#if PENDING > 0
    WgmmaWait<0>();
    if (previous >= 0) Release(previous);
#endif
  }

  // Adds the sums of the cluster's blocks; each block gets those of its own chunks of input rows.
  __device__ __forceinline__ void AddDepths(typename C::Accumulator (&acc)[C::kTokens / 2], int thread) const {
    asm volatile("bar.sync %0, %1;" ::"n"(C::kGroups + 1), "n"(C::kGroups * 128) : "memory");
    constexpr int kLanes = C::kGroups * 128;
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i)
      asm volatile("st.shared.b32 [%0], %1;" ::"r"(stages + (i * kLanes + thread) * 4), "r"(__float_as_uint(acc[i]))
                   : "memory");
    ClusterSyncDivergent();
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) {
      if (i / (C::kChunk / 2) % C::kDepth != depth_rank) continue;
      acc[i] = 0;
#pragma unroll
      for (int r = 0; r < C::kDepth; ++r) acc[i] += LoadRemote(stages + (i * kLanes + thread) * 4, r);
    }
  }

  __device__ __forceinline__ void Write(const Place& place, const typename C::Accumulator (&acc)[C::kTokens / 2],
                                        int group, const Late& late, int& buffer) const {
    using T = typename C::T;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, t = lane % 4;
    const int thread = threadIdx.x % 128;
    const int column0 = (FirstPieceRow(place) + group) * kPieceColumns;
    if (column0 >= p.n) return;  // the same for the whole warpgroup
    const uint32_t statistics = out + C::kGroups * 2 * C::kOutBytes + group * C::kStatisticsBytes;
    if (p.statistics && thread < C::kTokens / 2)
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(statistics + thread * 16), "f"(late.statistics.x),
                   "f"(late.statistics.y), "f"(late.statistics.z), "f"(late.statistics.w)
                   : "memory");
    GroupSync(group);
    // What this thread stores: 8 columns of every 16th row.
    const int column = column0 + thread % 8 * 8;
    int split = 0;
    while (split + 1 < p.splits && column >= p.end[split]) ++split;
    const int start = split ? p.end[split - 1] : 0, width = p.end[split] - start;
    T* const y = static_cast<T*>(p.y[split]) + (column - start);
    const bool wanted = p.y[split] != nullptr && column < p.n;
#pragma unroll
    for (int c = 0; c < C::kTokens / C::kChunk; ++c) {
      if (C::kDepth > 1 && c % C::kDepth != depth_rank) continue;
      const int row0 = place.rows * C::kTokens + c * C::kChunk;
      const uint32_t target = out + (group * 2 + buffer) * C::kOutBytes;
#pragma unroll
      for (int j = 0; j < C::kChunk / 8; j += 2) {
        uint32_t r[4];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const auto* d = acc + (c * C::kChunk / 8 + j + i) * 4;
          float4 s = {0, 1, 0, 1};  // mean and rstd of two rows
          if (p.statistics)
            asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
                         : "=f"(s.x), "=f"(s.y), "=f"(s.z), "=f"(s.w)
                         : "r"(statistics + (c * C::kChunk + (j + i) * 8 + t * 2) * 8));
          const auto finish = [](const Column& k, float value, float mean, float rstd) __attribute__((always_inline)) {
            return fmaf(rstd, fmaf(value, k.scale, -mean * k.column_sum), k.constant);
          };
          r[2 * i] = Pack2<T>(finish(late.low, static_cast<float>(d[0]), s.x, s.y),
                              finish(late.low, static_cast<float>(d[1]), s.z, s.w));
          r[2 * i + 1] = Pack2<T>(finish(late.high, static_cast<float>(d[2]), s.x, s.y),
                                  finish(late.high, static_cast<float>(d[3]), s.z, s.w));
        }
        const int token = j * 8 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
        StoreTransposed(target + token * 128 + ((piece ^ (token & 7)) * 16), r);
      }
      GroupSync(group);
#pragma unroll
      for (int i = 0; i < C::kChunk / 16; ++i) {
        const int token = thread / 8 + i * 16, row = row0 + token;
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(target + token * 128 + ((thread % 8 ^ (token & 7)) * 16)));
        if (row >= p.m) continue;
        if (p.vector_stores) {
          if (wanted) *reinterpret_cast<uint4*>(y + static_cast<int64_t>(row) * width) = v;
        } else {
          StoreElements<T>(p, v, row, column);
        }
      }
      buffer ^= 1;
    }
  }

  // Eight columns that need not belong to one output.
  template <typename T>
  static __device__ __noinline__ void StoreElements(const Params& p, uint4 v, int row, int column) {
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
    int split = 0;
    for (int e = 0; e < 8 && column + e < p.n; ++e) {
      while (column + e >= p.end[split]) ++split;
      const int start = split ? p.end[split - 1] : 0;
      const auto bits = static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16));
      if (p.y[split])
        reinterpret_cast<uint16_t*>(p.y[split])[static_cast<int64_t>(row) * (p.end[split] - start) + column + e - start] =
            bits;
    }
  }

  __device__ void Consume(int cluster, int clusters, int group) const {
    Ring ring;
    int buffer = 0;
    typename C::Accumulator acc[C::kTokens / 2];
    Late late;
    if constexpr (C::kDepth > 1) {
      const Place place(p, cluster);
      Multiply(acc, ring, group, place, true, late);
      AddDepths(acc, group * 128 + threadIdx.x % 128);
      Write(place, acc, group, late, buffer);
    } else {
      const int tiles = p.tiles_rows * p.tiles_columns;
      for (int tile = cluster; tile < tiles; tile += clusters) {
        const Place place(p, tile);
        Multiply(acc, ring, group, place, tile == cluster, late);
        Write(place, acc, group, late, buffer);
      }
    }
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
    HopperKernel(const __grid_constant__ CUtensorMap map, const __grid_constant__ Params p) {
  extern __shared__ char shared[];
  __shared__ __align__(8) uint64_t full[C::kStages], empty[C::kStages];
  const uint32_t base = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t rank = blockIdx.x % C::kCluster;  // known to be the same for the whole block
  const int depth_rank = static_cast<int>(rank) / C::kShare;
  const Block<C> block{p,
                       &map,
                       base,
                       base + C::kStages * C::kStageBytes,
                       SharedAddress(full),
                       SharedAddress(empty),
                       rank,
                       static_cast<int>(rank) % C::kShare,
                       depth_rank,
                       p.pieces_per_row * depth_rank / C::kDepth,
                       p.pieces_per_row * (depth_rank + 1) / C::kDepth};
  const int cluster = blockIdx.x / C::kCluster, clusters = gridDim.x / C::kCluster;
  const int role = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(block.Full(s), 1);
      BarrierInit(block.Empty(s), C::kShare * C::kGroups);
    }
    BarrierInitFence();
  }
  if constexpr (C::kCluster > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  if (role == 0) {
    if constexpr (C::kGroups <= 2) ShrinkRegisters<40>();
    if constexpr (C::kGroups == 3) ShrinkRegisters<32>();
    if (threadIdx.x == 0) block.Produce(cluster, clusters);
    __syncwarp();
    if constexpr (C::kDepth > 1) ClusterSyncDivergent();
  } else {
    if constexpr (C::kGroups <= 2) GrowRegisters<232>();
    if constexpr (C::kGroups == 3) GrowRegisters<160>();
    block.Consume(cluster, clusters, role - 1);
  }
  // The other blocks of the cluster may still read or signal here.
  if constexpr (C::kCluster > 1) ClusterSync();
}

using Encode = decltype(&cuTensorMapEncodeTiled);
Encode GetEncode() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &result) !=
        cudaSuccess)
      return Encode{nullptr};
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

template <typename C>
cudaError_t MakeMap(const Product& p, CUtensorMap* map) {
  constexpr auto kType = C::kInt8Rows                                  ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                         : std::is_same_v<typename C::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const cuuint64_t dims[] = {static_cast<cuuint64_t>(p.k), static_cast<cuuint64_t>(p.m)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(p.pitch) * sizeof(typename C::Element)};
  const cuuint32_t box[] = {C::kPieceDepth, C::kTokens / C::kShare}, steps[] = {1, 1};
  const Encode encode = GetEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  return encode(map, kType, 2, const_cast<void*>(p.rows), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

template <typename C>
struct Entry {
  static cudaError_t Prepare() {
    return cudaFuncSetAttribute(HopperKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  }
  static cudaError_t Run(const Product& product, int multiprocessors, bool dependent, cudaStream_t stream) {
    CUtensorMap map;
    if (const cudaError_t e = MakeMap<C>(product, &map)) return e;
    Params p{product};
    p.tiles_rows = static_cast<int>(CeilDiv(p.m, C::kTokens));
    p.tiles_columns = static_cast<int>(CeilDiv(p.piece_rows, C::kGroups * C::kShare));
    p.evict_first = p.tiles_rows == 1;
    const int tiles = p.tiles_rows * p.tiles_columns;
    // Blocks that share a tile take one tile each: what they exchange would else have to be guarded.
    const int clusters = C::kDepth > 1 ? tiles : std::min(tiles, multiprocessors / C::kCluster);
    LaunchShape shape{.grid = static_cast<unsigned>(clusters * C::kCluster), .block = C::kThreads};
    shape.shared_bytes = C::kSharedBytes;
    shape.cluster = C::kCluster;
    shape.dependent = dependent;
    return Launch(HopperKernel<C>, shape, stream, map, p);
  }
};

// Calls visit(Entry<...>) for each configuration of a type: {columns, rows, share, depth}.
#ifdef CONFIG_FILE
#include CONFIG_FILE
#else
#define CONFIGS(F)                                                                                                   \
  F(1, 16, 1, 1) F(2, 16, 1, 1) F(1, 16, 1, 2) F(1, 64, 1, 1) F(1, 64, 1, 2) F(2, 64, 1, 1) F(2, 64, 1, 2)             \
  F(3, 64, 1, 1) F(2, 128, 1, 1) F(2, 128, 2, 1) F(3, 128, 1, 1) F(3, 128, 2, 1) F(2, 256, 1, 1) F(2, 256, 2, 1)
#endif

struct Key {
  int groups, tokens, share, depth;
  bool operator==(const Key&) const = default;
};

template <typename T, Packing kPacking, typename Visit>
cudaError_t Each(const Visit& visit) {
  cudaError_t result = cudaSuccess;
#define QKV_VISIT(groups, tokens, share, depth)                                                  \
  if (result == cudaSuccess)                                                                     \
    result = visit(Key{groups, tokens, share, depth}, Entry<Config<T, kPacking, groups, tokens, share, depth>>{});
  CONFIGS(QKV_VISIT)
#undef QKV_VISIT
  return result;
}

template <typename T_>
struct Type {
  using T = T_;
};
template <Packing kPacking>
struct Form {
  static constexpr Packing kValue = kPacking;
};

template <typename Visit>
cudaError_t EachOfAll(const Visit& visit) {
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kHalf>{})) return e;
#ifndef ONLY_HALF
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kInt8>{})) return e;
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kInt8Activations>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kHalf>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kInt8>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kInt8Activations>{})) return e;
#endif
  return cudaSuccess;
}

}  // namespace

cudaError_t PrepareHopper() {
  return EachOfAll([](auto type, auto form) {
    return Each<typename decltype(type)::T, decltype(form)::kValue>([](const Key&, auto entry) { return entry.Prepare(); });
  });
}

cudaError_t RunHopper(const Problem& problem, const Plan& plan, Packing packing, const Product& product, bool dependent,
                      cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  if (const cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return e;
  const Key wanted{plan.tile_columns / 64, plan.tile_rows, plan.share, plan.depth_splits};
  bool found = false;
  const cudaError_t result = EachOfAll([&](auto type, auto form) {
    using T = typename decltype(type)::T;
    constexpr Packing kPacking = decltype(form)::kValue;
    if (kTypeOf<T> != problem.t || kPacking != packing) return cudaSuccess;
    return Each<T, kPacking>([&](const Key& key, auto entry) {
      if (!(key == wanted)) return cudaSuccess;
      found = true;
      return entry.Run(product, multiprocessors, dependent, stream);
    });
  });
  return result != cudaSuccess ? result : found ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace qkvgemm::cuda
