// Row statistics where weights are widened: stages follow each other too fast for a warp to read each.
#pragma once

#include "cuda/hopper_parts.cuh"
#include "cuda/hopper_tile.cuh"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda::hopper {

// Three warps take one stage in three each, all of its rows: each lane has many values that do not wait for
// one another.
template <typename C>
class StatisticsInTurns {
 public:
  __device__ StatisticsInTurns(const Block<C>& block, int warp)
      : block_(block), p_(block.p), warp_(warp), lane_(threadIdx.x % 32) {}

  __device__ void Run() const {
    VisitCentred(p_.norm, [this](auto centred) { RunFor<centred.value>(); });
  }

 private:
  // A lane has whole rows, or half of one.
  static constexpr int kRows = std::max(1, C::kTokens / 32), kSharers = 32 * kRows / C::kTokens,
                       kChunks = 8 / kSharers;
  static_assert(kSharers <= 2);

  __device__ __forceinline__ int Row(int i) const { return lane_ % C::kTokens + i * 32; }
  __device__ __forceinline__ int FirstChunk() const { return lane_ / C::kTokens * kChunks; }

  template <bool kCentred>
  __device__ __forceinline__ void RunFor() const {
    Ring ring;
    int count = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      ShiftedSums<kCentred> sums[kRows];
      int turn = 0;
      for (int kb = 0; kb < block_.Pieces(); ++kb) {
        // Each warp waits for every stage and gives it back, also those of the others: a barrier tells a
        // phase from the next but one only by who has not arrived.
        BarrierWait(block_.Full(ring.stage), ring.parity);
        uint32_t raw[kRows][kChunks][4];
        if (turn == warp_) {
          Load(raw, block_.Stage(ring.stage));
          // Loads that are still on their way are overtaken by the signal, and then by the copy engine.
          FenceForCopies();
        }
        __syncwarp();
        if (lane_ == 0) BarrierArrive(block_.Empty(ring.stage));
        if (turn == warp_) Add(sums, raw, kb);
        turn = turn == C::kStatisticsWarps - 1 ? 0 : turn + 1;
        ring.Next(C::kStages);
      }
      Share(sums, count);
    }
  }

  __device__ __forceinline__ void Load(uint32_t (&raw)[kRows][kChunks][4], uint32_t stage) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i)
#pragma unroll
      for (int c = 0; c < kChunks; ++c)
        LoadVector(raw[i][c], stage + Row(i) * 128 + (((FirstChunk() + c) ^ (Row(i) & 7)) * 16));
  }
  template <bool kCentred>
  __device__ __forceinline__ void Add(ShiftedSums<kCentred> (&sums)[kRows],
                                      const uint32_t (&raw)[kRows][kChunks][4], int kb) const {
    // Values, from this lane's first on.
    const int left = p_.k - (block_.FirstPiece() + kb) * C::kPieceDepth - FirstChunk() * 8;
    if (kb < C::kStatisticsWarps)
      Each<1>(raw, [&](int i, int, const float(&v)[8]) { sums[i].Start(v, min(max(left, 0), 8)); });
    if (left >= kChunks * 8) {
      Each<kChunks>(raw, [&](int i, int, const float(&v)[8]) { sums[i].Add(v); });
    } else {
      Each<kChunks>(raw, [&](int i, int chunk, const float(&v)[8]) {
        const int there = min(max(left - chunk * 8, 0), 8);
        sums[i].AddIf(v, there, [there](int e) { return e < there; });
      });
    }
  }
  // visit(i, chunk, values) for the first kCount chunks of this lane's rows.
  template <int kCount, typename Visit>
  static __device__ __forceinline__ void Each(const uint32_t (&raw)[kRows][kChunks][4], const Visit& visit) {
#pragma unroll
    for (int c = 0; c < kCount; ++c)
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        float v[8];
        Unpack<typename C::T>(uint4{raw[i][c][0], raw[i][c][1], raw[i][c][2], raw[i][c][3]}, v);
        visit(i, c, v);
      }
  }

  template <bool kCentred>
  __device__ __forceinline__ void Share(const ShiftedSums<kCentred> (&sums)[kRows], int tiles) const {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      Moments moments = sums[i].Get();
      if (kSharers == 2) moments.Merge(moments.Shuffled(16));
      if (lane_ < C::kTokens)
        asm volatile(
            "st.shared.v4.f32 [%0], {%1, %2, %3, %3};" ::"r"(block_.StatisticsPart(warp_) + Row(i) * 16),
            "f"(moments.count), "f"(moments.mean), "f"(moments.squares)
            : "memory");
    }
    block_.SyncStatistics();
    BarrierWait(block_.StatisticsEmpty(), tiles % 2 ^ 1);
    for (int row = warp_ * 32 + lane_; row < C::kTokens; row += C::kStatisticsWarps * 32) {
      Moments all;
#pragma unroll
      for (int w = 0; w < C::kStatisticsWarps; ++w) {
        uint32_t raw[4];
        LoadVector(raw, block_.StatisticsPart(w) + row * 16);
        all.Merge({__uint_as_float(raw[0]), __uint_as_float(raw[1]), __uint_as_float(raw[2])});
      }
      if constexpr (C::kParts) {
        if (!block_.WritesResults()) {
          SendMoments<C>(block_, row, all);
          continue;
        }
        MergeMoments<C>(block_, row, all);
      }
      block_.WriteStatistics(row, all.mean,
                             InverseDeviation(all.squares, static_cast<float>(p_.k), p_.epsilon));
    }
    if (!block_.WritesResults()) return;
    __syncwarp();
    BarrierArrive(block_.StatisticsFull());
    block_.SyncStatistics();  // the parts have been read
  }

  const Block<C>& block_;
  const Params& p_;
  const int warp_, lane_;
};

}  // namespace qkvgemm::cuda::hopper
