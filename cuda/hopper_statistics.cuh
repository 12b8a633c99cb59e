// Row statistics from the stages that the products read, so that few rows take one launch.
#pragma once

#include "cuda/hopper_tile.cuh"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda::hopper {

// A warpgroup, each warp with as many rows and each row with as many lanes: what is left to do after the last
// stage is short, and no warp waits for another.
template <typename C>
class StatisticsRole {
 public:
  __device__ StatisticsRole(const Block<C>& block, int warp)
      : block_(block),
        p_(block.p),
        row_(warp * kRows + (kRowsFirst ? Lane() % kRows : Lane() / kLanes)),
        part_(kRowsFirst ? Lane() / kRows : Lane() % kLanes) {}

  __device__ void Run() const {
    VisitCentred(p_.norm, [this](auto centred) { RunFor<centred.value>(); });
  }

 private:
  static constexpr int kRows = C::kTokens / C::kStatisticsWarps, kLanes = 32 / kRows,
                       kChunks = 8 / kLanes;  // of 16 bytes, of a row of a stage
  static_assert(kRows * kLanes == 32 && kLanes * kChunks == 8);
  // Eight lanes that read at a time have the same chunk of eight rows or all chunks of one: either way they
  // meet all banks.
  static constexpr bool kRowsFirst = kRows >= 8;

  static __device__ __forceinline__ int Lane() { return threadIdx.x % 32; }

  template <bool kCentred>
  __device__ __forceinline__ void RunFor() const {
    Ring ring;
    int count = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      ShiftedSums<kCentred> sums;
      for (int kb = 0; kb < p_.pieces_per_row; ++kb) {
        BarrierWait(block_.Full(ring.stage), ring.parity);
        uint32_t raw[kChunks][4];
        Load(raw, block_.Stage(ring.stage));
        // Loads that are still on their way are overtaken by the signal, and then by the copy engine.
        FenceForCopies();
        __syncwarp();
        if (Lane() == 0) BarrierArrive(block_.Empty(ring.stage));
        Add(sums, raw, kb);
        ring.Next(C::kStages);
      }
      Write(sums, count);
    }
  }

  __device__ __forceinline__ void Load(uint32_t (&raw)[kChunks][4], uint32_t stage) const {
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      LoadVector(raw[c], stage + row_ * 128 + (((part_ * kChunks + c) ^ (row_ & 7)) * 16));
  }

  template <bool kCentred>
  __device__ __forceinline__ void Add(ShiftedSums<kCentred>& sums, const uint32_t (&raw)[kChunks][4],
                                      int kb) const {
    const int left = p_.k - kb * C::kPieceDepth - part_ * kChunks * 8;  // values, from this lane's first on
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      float v[8];
      Unpack<typename C::T>(uint4{raw[c][0], raw[c][1], raw[c][2], raw[c][3]}, v);
      const int there = min(max(left - c * 8, 0), 8);
      if (c == 0 && kb == 0) sums.Start(v, there);
      if (left >= kChunks * 8) {
        sums.Add(v);
      } else {
        sums.AddIf(v, there, [there](int e) { return e < there; });
      }
    }
  }

  template <bool kCentred>
  __device__ __forceinline__ void Write(const ShiftedSums<kCentred>& sums, int tiles) const {
    Moments all = sums.Get();
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2)
      all.Merge(all.Shuffled(kRowsFirst ? apart * kRows : apart));
    const float rstd = InverseDeviation(all.squares, static_cast<float>(p_.k), p_.epsilon);
    BarrierWait(block_.StatisticsEmpty(), tiles % 2 ^ 1);
    if (part_ == 0) block_.WriteStatistics(row_, all.mean, rstd);
    BarrierArrive(block_.StatisticsFull());
  }

  const Block<C>& block_;
  const Params& p_;
  const int row_, part_;
};

}  // namespace qkvgemm::cuda::hopper
