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
  int tiles_rows, tiles_columns;
  bool evict_first;  // W is read once
  bool copy_stores;  // the copy engine writes the results, through Maps::y
  NormType norm;     // of statistics that are computed here; kNone: they are given
  float epsilon;
};

struct Maps {
  CUtensorMap rows, y[kMaxSplits];
};

constexpr int kStatisticsWarps = 3;  // those beside the producer's

// kGroups * 64 columns and kTokens rows.
template <typename T_, Packing kPacking_, int kGroups_, int kTokens_>
struct Config {
  using T = T_;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  using Matrix = Wgmma<Element, kTokens_>;
  using Accumulator = typename Matrix::Accumulator;
  static constexpr int kGroups = kGroups_, kTokens = kTokens_;
  static constexpr int kThreads = (kGroups + 1) * 128;
  static constexpr bool kStaged = sizeof(T) == 2;  // results pass through shared memory
  static constexpr bool kMoments = kStaged && !kInt8Rows && kTokens <= kMostMomentRows;
  // 0: what the threads get evenly is enough.
  static constexpr int kConsumerRegisters = kGroups == 3 ? 160 : kTokens == 256 ? 232 : 0;
  static constexpr int kProducerRegisters = kGroups == 3 ? 32 : 40;

  static constexpr int kPieceBytes = kWiden ? 4096 : 8192;
  static constexpr int kPieceDepth = ::qkvgemm::cuda::PieceDepth(kPacking_);
  static constexpr int kRowBytes = kTokens * 128;
  static constexpr int kFactorsAt = kRowBytes + kGroups * kPieceBytes;
  static constexpr int kStageBytes = kFactorsAt + (kWiden ? 1024 : 0);  // of which kFactorBytes are used
  // Results leave in chunks of rows, each warpgroup's from two places in turn.
  static constexpr int kChunkRows = std::min(kTokens, 64), kChunks = kTokens / kChunkRows,
                       kChunkBytes = kStaged ? kChunkRows * 128 : 0, kChunkPlaces = std::min(kChunks, 2);
  static constexpr int kColumnBytes = kPieceColumns * static_cast<int>(sizeof(Column));  // of one warpgroup
  static constexpr int kStatisticsBytes = kTokens * static_cast<int>(sizeof(RowStatistics));
  static constexpr int kPartBytes = kMoments ? kTokens * 16 : 0;  // of one warp
  static constexpr int kFixedBytes = 1024 + kGroups * (kChunkPlaces * kChunkBytes + kColumnBytes) +
                                     2 * kStatisticsBytes + kStatisticsWarps * kPartBytes;
  static constexpr int kMaxStages = (227 * 1024 - kFixedBytes - 512) / kStageBytes;
  static constexpr int kStages = std::min(kMaxStages, 16);
  static_assert(kStages >= 3);
  static constexpr int kSharedBytes = kFixedBytes + kStages * kStageBytes;
};

// Where a tile lies. Eight tiles of rows at a time, then along the columns: what runs together then
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

// Barriers of a block.
template <typename C>
struct Barriers {
  uint64_t full[C::kStages], empty[C::kStages];
  uint64_t constants_full, constants_empty;
};

// What all roles of a block know. Shared memory holds the stages, results on their way out, the constants of
// a tile (columns, then statistics in two copies) and parts of statistics.
template <typename C>
struct Block {
  const Params& p;
  const Maps& maps;
  uint32_t stages, barriers;  // shared addresses
  int first, step;            // its tiles: first, first + step, ...

  __device__ __forceinline__ uint32_t Full(int stage) const { return barriers + 8 * stage; }
  __device__ __forceinline__ uint32_t Empty(int stage) const { return Full(C::kStages + stage); }
  __device__ __forceinline__ uint32_t ConstantsFull() const { return Full(2 * C::kStages); }
  __device__ __forceinline__ uint32_t ConstantsEmpty() const { return Full(2 * C::kStages + 1); }

  __device__ __forceinline__ uint32_t Stage(int stage) const { return stages + stage * C::kStageBytes; }
  __device__ __forceinline__ uint32_t Chunk(int group, int place) const {
    return Stage(C::kStages) + (group * C::kChunkPlaces + place) * C::kChunkBytes;
  }
  __device__ __forceinline__ uint32_t Columns(int group) const {
    return Chunk(C::kGroups, 0) + group * C::kColumnBytes;
  }
  // Those that are given lie in the first copy. Of those that are computed here, tiles take turns, so that
  // the next ones are not written over the last.
  __device__ __forceinline__ uint32_t Statistics(int copy) const {
    return Columns(C::kGroups) + copy * C::kStatisticsBytes;
  }
  __device__ __forceinline__ uint32_t Part(int warp) const { return Statistics(2) + warp * C::kPartBytes; }

  __device__ __forceinline__ int FirstPieceRow(const Place& place) const {
    return place.columns * C::kGroups;
  }
  __device__ __forceinline__ int Tiles() const { return p.tiles_rows * p.tiles_columns; }
  __device__ __forceinline__ bool TakesStatistics() const { return C::kMoments && p.norm != NormType::kNone; }

  // Barriers of the block's parts: a warpgroup that computes, all of these and those that take statistics,
  // the latter alone.
  static __device__ __forceinline__ void Sync(int barrier, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
  }
  __device__ __forceinline__ void SyncGroup(int group) const { Sync(1 + group, 128); }
  __device__ __forceinline__ void SyncAll() const {
    Sync(1 + C::kGroups, C::kGroups * 128 + (TakesStatistics() ? kStatisticsWarps * 32 : 0));
  }
  __device__ __forceinline__ void SyncStatistics() const { Sync(2 + C::kGroups, kStatisticsWarps * 32); }
};

}  // namespace qkvgemm::cuda::hopper
