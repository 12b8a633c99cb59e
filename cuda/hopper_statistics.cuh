// Row statistics from the stages that the products read, so that few rows take one launch.
#pragma once

#include "cuda/hopper_parts.cuh"
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

  using Chunks = uint32_t[kChunks][4];

  template <bool kCentred>
  __device__ __forceinline__ void RunFor() const {
    Ring ring;
    int count = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      ShiftedSums<kCentred> sums;
      for (int kb = 0; kb < block_.Pieces(); ++kb) {
        Chunks chunks;
        Load(chunks, ring);
        Release(ring);
        Add(sums, chunks, kb);
      }
      Write(sums, count);
      if (C::kStaged && block_.WritesResults()) {  // the stage for the results
        BarrierWait(block_.Full(ring.stage), ring.parity);
        Release(ring);
      }
    }
  }

  __device__ __forceinline__ void Load(Chunks& chunks, const Ring& ring) const {
    BarrierWait(block_.Full(ring.stage), ring.parity);
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      LoadVector(chunks[c],
                 block_.Stage(ring.stage) + row_ * 128 + (((part_ * kChunks + c) ^ (row_ & 7)) * 16));
  }
  __device__ __forceinline__ void Release(Ring& ring) const {
    // Loads that are still on their way are overtaken by the signal, and then by the copy engine.
    FenceForCopies();
    __syncwarp();
    if (Lane() == 0) BarrierArrive(block_.Empty(ring.stage));
    ring.Next(C::kStages);
  }

  template <bool kCentred>
  __device__ __forceinline__ void Add(ShiftedSums<kCentred>& sums, const Chunks& chunks, int kb) const {
    // Values from this lane's first on.
    const int left = p_.k - (block_.FirstPiece() + kb) * C::kPieceDepth - part_ * kChunks * 8;
    float v[kChunks][8];
#pragma unroll
    for (int c = 0; c < kChunks; ++c)
      Unpack<typename C::T>(uint4{chunks[c][0], chunks[c][1], chunks[c][2], chunks[c][3]}, v[c]);
    if (kb == 0) sums.Start(v[0], min(max(left, 0), 8));
    if (left >= kChunks * 8) {
#pragma unroll
      for (int c = 0; c < kChunks; ++c) sums.Add(v[c]);
      return;
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      const int there = min(max(left - c * 8, 0), 8);
      sums.AddIf(v[c], there, [there](int e) { return e < there; });
    }
  }

  template <bool kCentred>
  __device__ __forceinline__ void Write(const ShiftedSums<kCentred>& sums, int tiles) const {
    Moments all = sums.Get();
#pragma unroll
    for (int apart = 1; apart < kLanes; apart *= 2)
      all.Merge(all.Shuffled(kRowsFirst ? apart * kRows : apart));
    if constexpr (C::kParts) {
      if (!block_.WritesResults()) {
        if (part_ == 0) SendMoments<C>(block_, row_, all);
        return;
      }
      MergeMoments<C>(block_, row_, all);
    }
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
