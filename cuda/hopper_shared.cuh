// Row statistics that the blocks of a launch or of a cluster share out among them while their first products
// run, for tiles whose own warps could not keep up with them.
#pragma once

#include "cuda/hopper_cluster.cuh"
#include "cuda/hopper_tile.cuh"
#include "cuda/launch.h"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda::hopper {

// Those of a row, by `lanes` neighbouring lanes, of which this is `part`.
template <typename C, bool kCentred>
__device__ __forceinline__ Moments MomentsOfRow(const Params& p, int row, int part, int lanes) {
  constexpr int kValues = 8;  // in 16 bytes
  // Loads under way at a time, as registers allow.
  constexpr int kLoads = C::kConsumerRegisters == 0    ? 8
                         : C::kProducerRegisters >= 80 ? 8
                         : C::kProducerRegisters >= 56 ? 4
                                                       : 2;
  const int chunks = p.k / kValues;  // rows as they come are whole chunks
  const uint4* const from = reinterpret_cast<const uint4*>(static_cast<const typename C::T*>(p.rows) +
                                                           static_cast<int64_t>(row) * p.pitch);
  ShiftedSums<kCentred> sums;
  for (int i = part; i < chunks; i += kLoads * lanes) {
    uint4 raw[kLoads];
#pragma unroll
    for (int j = 0; j < kLoads; ++j)
      if (i + j * lanes < chunks) raw[j] = from[i + j * lanes];  // not __ldg: see LoadChunk
#pragma unroll
    for (int j = 0; j < kLoads; ++j) {
      if (i + j * lanes >= chunks) break;
      float v[kValues];
      Unpack<typename C::T>(raw[j], v);
      if (j == 0 && i == part) sums.Start(v, kValues);
      sums.Add(v);
    }
  }
  Moments all = sums.Get();
  for (int apart = lanes / 2; apart > 0; apart /= 2) all.Merge(all.Shuffled(apart));
  return all;
}

// Each warp beside the producer's claims a few rows at a time. Claimed rows alone are waited for, by blocks
// that would claim the others themselves, so that none waits for a block that has not started.
template <typename C>
class SharedStatistics {
 public:
  __device__ explicit SharedStatistics(const Block<C>& block) : p_(block.p) {}

  __device__ void Run() const {
    WaitForPrevious();
    VisitCentred(p_.norm, [this](auto centred) { RunFor<centred.value>(); });
  }

  // By the thread that copies them to shared memory: until those of a tile's rows are there.
  static __device__ __forceinline__ void Wait(const Params& p, int tile_row) {
    const uint32_t rows = min(C::kTokens, p.m - tile_row * C::kTokens);
    uint32_t done;
    while (true) {
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(Done(p, tile_row)) : "memory");
      if (done == rows) break;
      __nanosleep(64);
    }
    asm volatile("fence.proxy.async;" ::: "memory");  // the copy engine reads what threads wrote
  }

 private:
  static __device__ __forceinline__ uint32_t* Done(const Params& p, int tile_row) {
    return p.counters + 1 + tile_row;
  }

  __device__ __forceinline__ int Claim(int rows) const {
    return threadIdx.x % 32 == 0 ? static_cast<int>(atomicAdd(p_.counters, static_cast<unsigned>(rows))) : 0;
  }

  template <bool kCentred>
  __device__ __forceinline__ void RunFor() const {
    const int warps = kSharingWarps * static_cast<int>(gridDim.x);
    const int rows = SharedRows(p_.k, p_.m, warps), lanes = 32 / rows, part = threadIdx.x % lanes;
    int first = __shfl_sync(~0u, Claim(rows), 0);
    while (first < p_.m) {
      const int next = Claim(rows);  // on its way meanwhile
      const int row = first + threadIdx.x % 32 / lanes;
      const Moments all = MomentsOfRow<C, kCentred>(p_, min(row, p_.m - 1), part, lanes);
      if (part == 0 && row < p_.m)
        p_.statistics[row] = {all.mean, InverseDeviation(all.squares, static_cast<float>(p_.k), p_.epsilon)};
      __syncwarp();
      if (threadIdx.x % 32 == 0)  // rows that are claimed together lie in one tile
        asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(Done(p_, first / C::kTokens)),
                     "r"(min(rows, p_.m - first))
                     : "memory");
      first = __shfl_sync(~0u, next, 0);
    }
  }

  const Params& p_;
};

// In a cluster: each block takes those of some of the tile's rows, and sends them to all that have the same.
template <typename C>
class ClusterStatistics {
 public:
  // warp: of a warpgroup.
  __device__ ClusterStatistics(const Block<C>& block, int warp) : block_(block), p_(block.p), warp_(warp) {}

  __device__ void Run() const {
    WaitForPrevious();
    VisitCentred(p_.norm, [this](auto centred) { RunFor<centred.value>(); });
  }

 private:
  template <bool kCentred>
  __device__ __forceinline__ void RunFor() const {
    const int rows = C::kTokens / p_.cluster_columns / 4,
              begin = (block_.column * 4 + warp_) * rows;  // of the tile's
    const int first = block_.At(block_.first).rows * C::kTokens;
    const int at_a_time = SharedRows(p_.k, rows, 1), lanes = 32 / at_a_time, part = threadIdx.x % lanes;
    for (int i = threadIdx.x % 32 / lanes; i - threadIdx.x % 32 / lanes < rows; i += at_a_time) {
      const Moments all = MomentsOfRow<C, kCentred>(p_, min(first + begin + i, p_.m - 1), part, lanes);
      if (part == 0 && i < rows)
        Send(begin + i, all.mean, InverseDeviation(all.squares, static_cast<float>(p_.k), p_.epsilon));
    }
  }
  __device__ __forceinline__ void Send(int row, float mean, float rstd) const {
    for (int i = 0; i < p_.cluster_columns; ++i) {
      const int rank = block_.row * p_.cluster_columns + i;
      StoreToBlock(MapToBlock(block_.StatisticsOf(row), rank), mean, rstd,
                   MapToBlock(block_.StatisticsFull(), rank));
    }
  }

  const Block<C>& block_;
  const Params& p_;
  const int warp_;
};

}  // namespace qkvgemm::cuda::hopper
