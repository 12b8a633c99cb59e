// What a tile of the Hopper family is: sizes, places in memory, order.
#pragma once

#include <algorithm>
#include <type_traits>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/tma.cuh"
#include "cuda/wgmma.cuh"

namespace qkvgemm::cuda::hopper {

struct Params : Product {
  int tile_columns;  // of narrow tiles not a multiple of 64
  int tiles_rows, tiles_columns;
  bool evict_first;                   // W is read once
  bool copy_stores;                   // the copy engine writes the results, through Maps::y
  int cluster_columns, cluster_rows;  // tiles of a cluster of blocks, which have one each; 1 x 1: no clusters
  int k_parts;    // or blocks of a cluster that have one tile together; 1: no such clusters
  NormType norm;  // of statistics that are computed here; kNone: they are given
  float epsilon;
};

struct Maps {
  CUtensorMap rows, y[kMaxSplits];
};

// Rows of a tile whose results leave together, at most `most`: a multiple of 16, of which a tile has one or
// an even number.
constexpr int ChunkRows(int rows, int most) {
  int chunks = 1;
  while (rows / chunks > most) chunks *= 2;
  return rows / chunks;
}

// kCluster: those of a cluster have a tile each, and share what they read. kParts: they have one tile
// together, of whose K each multiplies a part.
enum class Blocks { kAlone, kCluster, kParts };

// Up to kGroups * 64 columns and kTokens rows.
template <typename T_, Packing kPacking_, int kGroups_, int kTokens_, Blocks kBlocks_ = Blocks::kAlone>
struct Config {
  static constexpr bool kCluster = kBlocks_ == Blocks::kCluster, kParts = kBlocks_ == Blocks::kParts;
  using T = T_;
  static constexpr Packing kPacking = kPacking_;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  // The compiler gives an instruction of 256 rows more registers than four warpgroups leave it: two of 128.
  static constexpr int kHalves = kGroups_ == 3 && kTokens_ == 256 ? 2 : 1;
  using Matrix = Wgmma<Element, kTokens_ / kHalves>;
  static constexpr int kGroups = kGroups_, kTokens = kTokens_;
  using Accumulator = typename Matrix::Accumulator;
  using Accumulators = Accumulator[kHalves][kTokens / kHalves / 2];
  static constexpr bool kMoments = !kCluster && TakesMoments(kPacking_, kTokens, kParts);
  static constexpr bool kShares = sizeof(T) == 2 && !kInt8Rows && !kMoments && !kParts;
  // Of few rows: a warpgroup of their own, each with some rows of every stage. Stages of int8 weights follow
  // each other too fast for that, and widening takes the registers: the three warps beside the producer's,
  // each with all rows of a stage in turn.
  static constexpr bool kStatisticsGroup = kMoments && !kWiden;
  static constexpr int kStatisticsWarps = !kMoments ? 0 : kStatisticsGroup ? 4 : 3;
  // In a cluster a warpgroup takes them from memory, for it and for others (cuda/hopper_shared.cuh).
  static constexpr bool kClusterStatistics = kCluster && HasClusterStatistics(kGroups);
  static constexpr int kThreads = (kGroups + 1 + (kStatisticsGroup || kClusterStatistics)) * 128;
  // 0: what the threads get evenly is enough.
  static constexpr int kConsumerRegisters = kTokens < 128    ? 0
                                            : kGroups == 3   ? kTokens == 256 ? 160 : 152
                                            : kTokens == 256 ? 208
                                                             : 0;
  static constexpr int kProducerRegisters = (kGroups == 3 ? 512 : 504) - kGroups * kConsumerRegisters;

  // Threads that say of a warpgroup that it has read a stage. Weights that are widened each warp has read
  // itself. compute-sanitizer's racecheck follows a barrier for those threads alone that arrive there: for it
  // all do.
#ifdef QKVGEMM_RACECHECK
  static constexpr int kReaders = kWiden ? 128 : 1;
#else
  static constexpr int kReaders = kWiden ? 4 : 1;
#endif

  static constexpr int kPieceBytes = kWiden ? 4096 : 8192, kColumnBytes = kPieceBytes / kPieceColumns;
  static constexpr int kPieceDepth = ::qkvgemm::cuda::PieceDepth(kPacking_);
  static constexpr int kRowBytes = kTokens * 128;
  static constexpr int kFactorsAt = kRowBytes + kGroups * kPieceBytes;
  static constexpr int kStageBytes = kFactorsAt + (kWiden ? 1024 : 0);  // of which kFactorBytes are used

  // Many rows of halves leave in chunks through a stage that is not filled at the end of each tile, each
  // warpgroup's from one or two places in it.
  static constexpr bool kStaged = sizeof(T) == 2 && kTokens > 32;
  // One of each warpgroup fits into the stage.
  static constexpr int kChunkRows = ChunkRows(kTokens, std::min(80, kStageBytes / (kGroups * 128))),
                       kChunks = kTokens / kChunkRows, kChunkBytes = kChunkRows * 128;
  static constexpr int kPlaces = std::min({kChunks, 2, kStageBytes / (kGroups * kChunkBytes)});
  static constexpr int kRounds = kChunks / kPlaces;  // in which a tile's chunks fill the places
  static_assert(kChunkRows % 16 == 0);
  static_assert(kPlaces > 0 && kChunks % kPlaces == 0 && kRounds * kPlaces == kChunks);

  static constexpr int kStatisticsBytes = kTokens * static_cast<int>(sizeof(RowStatistics));
  static constexpr int kPartBytes = kMoments && !kStatisticsGroup ? kTokens * 16 : 0;  // of one warp
  static constexpr int kAllStatisticsBytes = kStatisticsBytes + kStatisticsWarps * kPartBytes;
  static constexpr int kBarrierBytes = 512;
  // What a block hands to the first of its cluster: its sums, and its part of the statistics.
  static constexpr int kGroupSumBytes = kPieceColumns * kTokens * 4, kSumBytes = kGroups * kGroupSumBytes,
                       kMomentsBytes = kMoments ? kTokens * 16 : 0;
  static constexpr int kMostParts = kParts ? MostParts(kPacking_, kGroups, kTokens) : 1;
  static constexpr int kExchangeBytes = (kMostParts - 1) * (kSumBytes + kMomentsBytes);
  static constexpr int kMaxStages =
      (227 * 1024 - kAllStatisticsBytes - kBarrierBytes - kExchangeBytes) / kStageBytes;
  static constexpr int kStages = std::min(kMaxStages, 16);
  static_assert(kStages >= 3);
  static constexpr int kSharedBytes =
      kStages * kStageBytes + kAllStatisticsBytes + kBarrierBytes + kExchangeBytes;
};

// Where a tile lies. Eight tiles of rows at a time, then along the columns: what runs together then
// shares both operands in the L2 cache.
struct Place {
  int rows, columns;
  __device__ Place(int rows, int columns) : rows(rows), columns(columns) {}
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

// Calls visit(std::true_type{}) where sums are centred, as LayerNorm's, else visit(std::false_type{}).
template <typename Visit>
__device__ __forceinline__ void VisitCentred(NormType norm, const Visit& visit) {
  if (norm == NormType::kLayerNorm) {
    visit(std::true_type{});
  } else {
    visit(std::false_type{});
  }
}

// What all roles of a block know. Shared memory holds the stages, the statistics of a tile's rows,
// parts of them, barriers, and the sums of other parts of K.
template <typename C>
struct Block {
  const Params& p;
  const Maps& maps;
  uint32_t stages;  // shared address
  int first, step;  // its tiles: first, first + step, ...
  int column, row;  // in the cluster
  int part;         // of K

  __device__ __forceinline__ Place At(int tile) const {
    if constexpr (C::kCluster) {
      const int cluster = tile / (p.cluster_columns * p.cluster_rows),
                across = p.tiles_columns / p.cluster_columns;
      return Place(cluster / across * p.cluster_rows + row, cluster % across * p.cluster_columns + column);
    } else {
      return Place(p, tile);
    }
  }

  __device__ __forceinline__ uint32_t Stage(int stage) const { return stages + stage * C::kStageBytes; }
  __device__ __forceinline__ uint32_t Statistics() const { return Stage(C::kStages); }

  __device__ __forceinline__ uint32_t StatisticsPart(int warp) const {
    return Statistics() + C::kStatisticsBytes + warp * C::kPartBytes;
  }

  // A stage has been filled; all that read it have done so.
  __device__ __forceinline__ uint32_t Full(int stage) const {
    return Statistics() + C::kAllStatisticsBytes + 8 * stage;
  }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return Full(C::kStages + stage); }
  // A tile's statistics likewise.
  __device__ __forceinline__ uint32_t StatisticsFull() const { return Empty(C::kStages); }
  __device__ __forceinline__ uint32_t StatisticsEmpty() const { return Empty(C::kStages + 1); }
  // A warpgroup's chunk of results is in its place; it has left it.
  __device__ __forceinline__ uint32_t ChunkFull(int group, int place) const {
    return Empty(C::kStages + 2 + group * C::kPlaces + place);
  }
  __device__ __forceinline__ uint32_t ChunkEmpty(int group, int place) const {
    return ChunkFull(C::kGroups + group, place);
  }
  // The sums of all other parts of K are there; their statistics likewise.
  __device__ __forceinline__ uint32_t SumsFull() const { return ChunkFull(2 * C::kGroups, 0); }
  __device__ __forceinline__ uint32_t MomentsFull() const { return SumsFull() + 8; }
  static_assert((2 * C::kStages + 4 + 2 * C::kGroups * C::kPlaces) * 8 <= C::kBarrierBytes);

  // What a part of K behind the first hands over. A warpgroup's sums: 16 bytes of each thread, then the
  // next 16.
  __device__ __forceinline__ uint32_t PartSums(int part, int group) const {
    return Statistics() + C::kAllStatisticsBytes + C::kBarrierBytes + (part - 1) * C::kSumBytes +
           group * C::kGroupSumBytes + threadIdx.x % 128 * 16;
  }
  // A row's moments: 16 bytes.
  __device__ __forceinline__ uint32_t PartMoments(int part, int row) const {
    return Statistics() + C::kAllStatisticsBytes + C::kBarrierBytes + (C::kMostParts - 1) * C::kSumBytes +
           (part - 1) * C::kMomentsBytes + row * 16;
  }

  __device__ __forceinline__ uint32_t Chunk(int stage, int group, int place) const {
    return Stage(stage) + (group * C::kPlaces + place) * C::kChunkBytes;
  }

  __device__ __forceinline__ void InitBarriers() const {
    // In a cluster a warpgroup tells each block that loads for it.
    const int readers = C::kCluster ? p.cluster_columns + p.cluster_rows - 1 : C::kReaders;
    for (int s = 0; s < C::kStages; ++s) {
      BarrierInit(Full(s), 1);
      BarrierInit(Empty(s), C::kGroups * readers + (TakesStatistics() ? C::kStatisticsWarps : 0));
    }
    BarrierInit(StatisticsFull(), TakesStatistics() ? C::kStatisticsWarps * 32 : 1);
    if (SendsStatistics()) BarrierExpect(StatisticsFull(), C::kStatisticsBytes);
    BarrierInit(StatisticsEmpty(), C::kGroups * 4);
    for (int g = 0; g < C::kGroups; ++g)
      for (int i = 0; i < C::kPlaces; ++i) {
        BarrierInit(ChunkFull(g, i), 4);
        BarrierInit(ChunkEmpty(g, i), 1);
      }
    if constexpr (C::kParts) {
      BarrierInit(SumsFull(), 1);
      BarrierInit(MomentsFull(), 1);
      if (part == 0) {
        BarrierExpect(SumsFull(), (p.k_parts - 1) * C::kSumBytes);
        BarrierExpect(MomentsFull(), (p.k_parts - 1) * C::kMomentsBytes);
      }
    }
    BarrierInitFence();
  }

  // Pieces of 128 bytes of K that this block multiplies.
  __device__ __forceinline__ int FirstPiece() const {
    return C::kParts ? part * p.pieces_per_row / p.k_parts : 0;
  }
  __device__ __forceinline__ int Pieces() const {
    return C::kParts ? (part + 1) * p.pieces_per_row / p.k_parts - FirstPiece() : p.pieces_per_row;
  }
  __device__ __forceinline__ bool WritesResults() const { return !C::kParts || part == 0; }

  __device__ __forceinline__ int FirstColumn(const Place& place, int group = 0) const {
    return place.columns * p.tile_columns + group * kPieceColumns;
  }
  // Behind the last that a tile writes.
  __device__ __forceinline__ int EndColumn(const Place& place) const {
    return min(FirstColumn(place) + p.tile_columns, p.n);
  }
  __device__ __forceinline__ int Tiles() const { return p.tiles_rows * p.tiles_columns; }
  __device__ __forceinline__ bool TakesStatistics() const { return C::kMoments && p.norm != NormType::kNone; }

  __device__ __forceinline__ bool SharesStatistics() const { return C::kShares && p.counters != nullptr; }
  // Those of some of the tile's rows, to all blocks of the cluster that have them.
  __device__ __forceinline__ bool SendsStatistics() const {
    return C::kClusterStatistics && p.norm != NormType::kNone && !SharesStatistics();
  }

  __device__ __forceinline__ uint32_t StatisticsOf(int row) const {
    return Statistics() + row * static_cast<int>(sizeof(RowStatistics));
  }
  // By the one thread that has those of a row of the tile.
  __device__ __forceinline__ void WriteStatistics(int row, float mean, float rstd) const {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(StatisticsOf(row)), "f"(mean), "f"(rstd)
                 : "memory");
  }

  // All warps that take statistics wait for each other.
  static __device__ __forceinline__ void SyncStatistics() {
    asm volatile("bar.sync 1, %0;" ::"n"(C::kStatisticsWarps * 32) : "memory");
  }
};

}  // namespace qkvgemm::cuda::hopper
