// Any number of rows on Hopper: TMA, wgmma, warp specialisation, persistent blocks.
//
// Columns of W are the rows of the matrix instruction (64 for each warpgroup) and rows of the input its columns, so that
// a tile may have as few as 16 input rows, int8 weights can be widened in registers, and what a column needs in the end
// is held by one thread. A tile's results therefore pass through shared memory (stmatrix.trans) on their way out.
//
// One producer thread fills a ring of stages; kGroups warpgroups compute 64 columns each. kShare: blocks of a cluster
// that compute the same rows and load them together (multicast).
//
// Where rows are few, a further warpgroup takes their statistics from the same stages, so that one launch does all.
#include <algorithm>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/launch.h"
#include "cuda/moments.cuh"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"
#include "cuda/widen.cuh"

namespace qkvgemm::cuda {
namespace {

constexpr int kSharedLimit = 227 * 1024;

struct Params : Product {
  int tiles_rows, tiles_columns;  // the latter in units of what a cluster computes
  bool evict_first;               // W is read once
  bool copy_stores;               // the copy engine writes the results, through Maps::y
  bool moments;                   // the row statistics are taken here
  bool centred;                   // they include the mean
  float epsilon;
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
  static constexpr bool kMoments = !kInt8Rows && !kWiden && kTokens <= kMomentRows;
  static constexpr int kThreads = (kGroups + (kMoments ? 2 : 1)) * 128;
  static constexpr bool kMoveRegisters = !kMoments;  // from the producer's warpgroup to the others
  static constexpr int kPieceBytes = kWiden ? 4096 : 8192;
  static constexpr int kPieceDepth = kInt8Rows ? 128 : 64;
  static constexpr int kRowBytes = kTokens * 128;
  static constexpr int kStageBytes = kRowBytes + kGroups * kPieceBytes;
  static constexpr int kOutBytes = kTokens * 128;             // results of one warpgroup
  static constexpr int kStatisticsBytes = kTokens * static_cast<int>(sizeof(RowStatistics));  // one copy a warpgroup
  static constexpr int kFixedBytes = 1024 + kGroups * (kOutBytes + kStatisticsBytes);
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
  const Maps& maps;
  uint32_t stages, out, full, empty;  // shared addresses
  int rank;  // in the cluster

  __device__ __forceinline__ uint32_t Full(int stage) const { return full + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return empty + 8 * stage; }
  __device__ __forceinline__ uint32_t Statistics(int group) const {
    return out + C::kGroups * C::kOutBytes + group * C::kStatisticsBytes;
  }
  // Of the warpgroup that takes the statistics and those that use them.
  static __device__ __forceinline__ void MomentsSync() {
    asm volatile("bar.sync %0, %1;" ::"n"(C::kGroups + 1), "n"((C::kGroups + 1) * 128) : "memory");
  }
  __device__ __forceinline__ int FirstPieceRow(const Place& place) const {
    return (place.columns * C::kShare + rank) * C::kGroups;
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
    const int column = min((FirstPieceRow(place) + group), p.piece_rows - 1) * kPieceColumns + warp * 16 + lane / 4;
    late.low = p.columns[column];
    late.high = p.columns[column + 8];
    // The statistics are the work of the kernel before, and the outputs may be its inputs.
    if (first_tile) WaitForPrevious();
    late.statistics = {0, 1, 0, 1};
    if (p.statistics && !p.moments && thread < C::kTokens / 2)
      late.statistics = reinterpret_cast<const float4*>(p.statistics)[place.rows * (C::kTokens / 2) + thread];
  }

  // The statistics of the block's only tile; kSharers neighbouring threads share a row.
  __device__ void TakeMoments(int thread) const {
    using T = typename C::T;
    constexpr int kSharers = 128 / C::kTokens, kValues = 64 / kSharers;
    const int token = thread / kSharers, first = thread % kSharers * kValues;
    Moments moments;
    Ring ring;
    for (int kb = 0; kb < p.pieces_per_row; ++kb) {
      BarrierWait(Full(ring.stage), ring.parity);
      const uint32_t row = stages + ring.stage * C::kStageBytes + token * 128;
      uint4 raw[kValues / 8];
#pragma unroll
      for (int c = 0; c < kValues / 8; ++c)
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(raw[c].x), "=r"(raw[c].y), "=r"(raw[c].z), "=r"(raw[c].w)
                     : "r"(row + (((first / 8 + c) ^ (token & 7)) * 16)));
      float v[kValues];
#pragma unroll
      for (int c = 0; c < kValues / 8; ++c) Unpack<T>(raw[c], *reinterpret_cast<float(*)[8]>(v + 8 * c));
      __syncwarp();
      if (thread % 32 == 0) BarrierArrive(Empty(ring.stage));
      const int left = p.k - (kb * 64 + first);
      if (left >= kValues) {
        moments.Add(v, kValues, p.centred);
      } else if (left > 0) {
        moments.Add(v, left, p.centred);
      }
      ring.Next(C::kStages);
    }
#pragma unroll
    for (int o = 1; o < kSharers; o *= 2) moments.Merge(moments.Shuffled(o));
    if (thread % kSharers == 0) {
      const float rstd = InverseDeviation(moments.squares, static_cast<float>(p.k), p.epsilon);
      asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(Statistics(0) + token * 8), "f"(moments.mean), "f"(rstd)
                   : "memory");
    }
    MomentsSync();
  }

  // acc: at [4 j + 2 i + e] the sum for column g + 8 i of the warp's 16 and input row 8 j + 2 t + e.
  __device__ __forceinline__ void Multiply(typename C::Accumulator (&acc)[C::kTokens / 2], Ring& ring, int group,
                                           const Place& place, bool first_tile, Late& late) const {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    constexpr int kLateBlocks = 4;
    const int fetch_at = max(0, p.pieces_per_row - kLateBlocks);
    for (int kb = 0; kb < p.pieces_per_row; ++kb) {
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

  __device__ __forceinline__ void Write(const Place& place, const typename C::Accumulator (&acc)[C::kTokens / 2],
                                        int group, const Late& late) const {
    using T = typename C::T;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, t = lane % 4, thread = threadIdx.x % 128;
    const int column0 = (FirstPieceRow(place) + group) * kPieceColumns, row0 = place.rows * C::kTokens;
    const uint32_t results = out + group * C::kOutBytes;
    const uint32_t statistics = Statistics(p.moments ? 0 : group);
    if (thread < C::kTokens / 2 && !p.moments)
      asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(statistics + thread * 16), "f"(late.statistics.x),
                   "f"(late.statistics.y), "f"(late.statistics.z), "f"(late.statistics.w)
                   : "memory");
    if (p.copy_stores && thread == 0) StoreWaitRead<0>();  // the results of the tile before have left
    if (C::kMoments && p.moments) {
      MomentsSync();
    } else {
      GroupSync(group);
    }
    if (column0 >= p.n) return;  // the same for the whole warpgroup
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
        const auto finish = [](const Column& k, float value, float mean, float rstd) __attribute__((always_inline)) {
          return fmaf(rstd, fmaf(value, k.scale, -mean * k.column_sum), k.constant);
        };
        r[2 * i] = Pack2<T>(finish(late.low, static_cast<float>(d[0]), s.x, s.y),
                            finish(late.low, static_cast<float>(d[1]), s.z, s.w));
        r[2 * i + 1] = Pack2<T>(finish(late.high, static_cast<float>(d[2]), s.x, s.y),
                                finish(late.high, static_cast<float>(d[3]), s.z, s.w));
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
        uint4 v;
        asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                     : "r"(results + token * 128 + ((thread % 8 ^ (token & 7)) * 16)));
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
  __device__ __forceinline__ void StoreElements(const uint4& v, int row, int column, int split) const {
    while (split + 1 < p.splits && column >= p.end[split]) ++split;
    int start = split ? p.end[split - 1] : 0;
    if (p.vector_stores) {
      if (column < p.n && p.y[split])
        *reinterpret_cast<uint4*>(static_cast<T*>(p.y[split]) + static_cast<int64_t>(row) * (p.end[split] - start) +
                                  column - start) = v;
      return;
    }
    const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (column + e >= p.n) break;
      if (column + e >= p.end[split]) start = p.end[split++];
      if (p.y[split])
        static_cast<uint16_t*>(p.y[split])[static_cast<int64_t>(row) * (p.end[split] - start) + column + e - start] =
            static_cast<uint16_t>(words[e / 2] >> (e % 2 * 16));
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
  const Block<C> block{p,
                       maps,
                       base,
                       base + C::kStages * C::kStageBytes,
                       SharedAddress(full),
                       SharedAddress(empty),
                       rank};
  const int cluster = blockIdx.x / C::kShare, clusters = gridDim.x / C::kShare;
  const int role = threadIdx.x / 128;
  if (threadIdx.x == 0) {
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(block.Full(s), 1);
      BarrierInit(block.Empty(s), C::kShare * C::kGroups + (p.moments ? 4 : 0));
    }
    BarrierInitFence();
  }
  if constexpr (C::kShare > 1) {
    ClusterSync();
  } else {
    __syncthreads();
  }
  if constexpr (C::kMoments) LetNextStart();  // so short a kernel that the start of the next one is worth hiding
  if (role == 0) {
    if constexpr (C::kMoveRegisters) ShrinkRegisters<C::kGroups == 3 ? 32 : 40>();
    if (threadIdx.x == 0) block.Produce(cluster, clusters);
  } else if (role > C::kGroups) {
    if constexpr (C::kMoments)
      if (p.moments) block.TakeMoments(threadIdx.x % 128);
  } else {
    if constexpr (C::kMoveRegisters) GrowRegisters<C::kGroups == 3 ? 160 : 232>();
    block.Consume(cluster, clusters, role - 1);
  }
  // The other blocks of the cluster may still read or signal here.
  if constexpr (C::kShare > 1) ClusterSync();
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

// [rows, columns] with `pitch` elements from row to row, in boxes of [box_rows, 128 bytes].
cudaError_t MakeMap(CUtensorMap* map, CUtensorMapDataType type, int element_bytes, const void* data, int64_t columns,
                    int64_t rows, int64_t pitch, int box_rows) {
  const cuuint64_t dims[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(pitch * element_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / element_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const Encode encode = GetEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  return encode(map, type, 2, const_cast<void*>(data), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

template <typename C>
cudaError_t MakeMaps(const Params& p, Maps* maps) {
  constexpr auto kType = std::is_same_v<typename C::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                               : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (const cudaError_t e = MakeMap(&maps->rows, C::kInt8Rows ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : kType,
                                    sizeof(typename C::Element), p.rows, p.k, p.m, p.pitch, C::kTokens / C::kShare))
    return e;
  for (int s = 0; p.copy_stores && s < p.splits; ++s) {
    const int width = p.end[s] - (s ? p.end[s - 1] : 0);
    if (p.y[s] == nullptr) continue;
    if (const cudaError_t e = MakeMap(&maps->y[s], kType, 2, p.y[s], width, p.m, width, C::kTokens)) return e;
  }
  return cudaSuccess;
}

template <typename C>
struct Entry {
  static cudaError_t Prepare() {
    return cudaFuncSetAttribute(HopperKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  }
  static cudaError_t Run(const Problem& problem, const Product& product, int multiprocessors,
                         cudaStream_t stream) {
    Params p{product};
    p.tiles_rows = static_cast<int>(CeilDiv(p.m, C::kTokens));
    p.tiles_columns = static_cast<int>(CeilDiv(p.piece_rows, C::kGroups * C::kShare));
    p.evict_first = p.tiles_rows == 1;
    p.moments = C::kMoments && problem.norm != NormType::kNone;
    p.centred = problem.norm == NormType::kLayerNorm;
    p.epsilon = problem.epsilon;
    p.copy_stores = p.vector_stores;
    for (int s = 0; s + 1 < p.splits; ++s) p.copy_stores = p.copy_stores && p.end[s] % kPieceColumns == 0;
    Maps maps;
    if (const cudaError_t e = MakeMaps<C>(p, &maps)) return e;
    const int tiles = p.tiles_rows * p.tiles_columns;
    // Statistics are taken for one tile a block.
    const int clusters = p.moments ? tiles : std::min(tiles, multiprocessors / C::kShare);
    LaunchShape shape{.grid = static_cast<unsigned>(clusters * C::kShare), .block = C::kThreads};
    shape.shared_bytes = C::kSharedBytes;
    shape.cluster = C::kShare;
    shape.dependent = true;
    return Launch(HopperKernel<C>, shape, stream, maps, p);
  }
};

// Calls visit(Entry<...>) for each configuration of a type: {columns / 64, rows, share}.
#ifdef CONFIG_FILE
#include CONFIG_FILE
#else
#define CONFIGS(F)                                                                                               \
  F(1, 16, 1) F(2, 16, 1) F(1, 32, 1) F(2, 32, 1) F(1, 64, 1) F(2, 64, 1) F(3, 64, 1) F(2, 128, 1) F(3, 128, 1) \
  F(2, 256, 1) F(2, 256, 2)
#endif

struct Key {
  int groups, tokens, share;
  bool operator==(const Key&) const = default;
};

template <typename T, Packing kPacking, typename Visit>
cudaError_t Each(const Visit& visit) {
  cudaError_t result = cudaSuccess;
#define QKV_VISIT(groups, tokens, share)                                                  \
  if (result == cudaSuccess)                                                                     \
    result = visit(Key{groups, tokens, share}, Entry<Config<T, kPacking, groups, tokens, share>>{});
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

cudaError_t RunHopper(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                      cudaStream_t stream) {
  int device = 0, multiprocessors = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  if (const cudaError_t e = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device)) return e;
  const Key wanted{plan.tile_columns / 64, plan.tile_rows, plan.share};
  bool found = false;
  const cudaError_t result = EachOfAll([&](auto type, auto form) {
    using T = typename decltype(type)::T;
    constexpr Packing kPacking = decltype(form)::kValue;
    if (kTypeOf<T> != problem.t || kPacking != packing) return cudaSuccess;
    return Each<T, kPacking>([&](const Key& key, auto entry) {
      if (!(key == wanted)) return cudaSuccess;
      found = true;
      return entry.Run(problem, product, multiprocessors, stream);
    });
  });
  return result != cudaSuccess ? result : found ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace qkvgemm::cuda
