// What a tile of the stream family is: sizes and places in shared memory.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/mma.cuh"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda::stream {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kGroupColumns = 16;

struct Params : Product {
  int64_t row_bytes;  // of the input
  NormType norm;      // of statistics that are computed here; kNone: they are given
  float epsilon;
};

// kGroups groups of columns, kTokens rows of the input; registers for at least kMinBlocks blocks on a
// multiprocessor.
template <typename T_, Packing kPacking_, int kGroups_, int kTokens_, int kMinBlocks_ = 1>
struct Config {
  static constexpr int kMinBlocks = kMinBlocks_;
  using T = T_;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  using Sum = typename Mma<Element>::Accumulator;
  static constexpr int kGroups = kGroups_, kTokens = kTokens_;
  static constexpr int kColumns = kGroups * kGroupColumns;
  static constexpr bool kOneRow = kTokens == 1;  // without matrix instructions
  static constexpr int kBlocks =
      kOneRow ? 1 : kTokens / 8;                            // matrix instructions along the rows of the input
  static constexpr int kPiecesPerStep = kWiden ? 2 : 1;     // of W, along K
  static constexpr int kPieceVectors = kWiden ? 256 : 512;  // of 16 bytes
  static constexpr int kGroupVectors = kPieceVectors / 4;   // of a piece
  static constexpr int kSecondVector =
      kWiden ? 32 : 64;  // from a lane's first vector of a half step to its second
  // Sums pass through shared memory some groups at a time: all of 96 columns and 16 rows would not fit.
  static constexpr int kRoundGroups = kGroups < 3 ? kGroups : 3;
  static constexpr int kRoundColumns = kRoundGroups * kGroupColumns;
  static constexpr int kRounds = kGroups / kRoundGroups;
  static constexpr int kLaneColumns = (kRoundColumns + 31) / 32;
  static constexpr int kSumPitch = kTokens + 1;  // against bank conflicts
  static constexpr int kSumsBytes = kWarps * kRoundColumns * kSumPitch * 4;
  static constexpr bool kMoments = sizeof(T) == 2 && !kInt8Rows;
  static constexpr int kMomentsBytes = kMoments ? kWarps * kTokens * static_cast<int>(sizeof(Moments)) : 0;
  static constexpr int kStages = 3;
  static constexpr int kStageBytes = kTokens * kPieceRowBytes;
  static constexpr int kRingBytes = kWiden ? kWarps * kStages * kStageBytes : 0;
  static constexpr int kSharedBytes =
      kRingBytes > kSumsBytes + kMomentsBytes ? kRingBytes : kSumsBytes + kMomentsBytes;
};

}  // namespace qkvgemm::cuda::stream
