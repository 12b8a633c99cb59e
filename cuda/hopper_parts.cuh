// Tiles whose K a cluster of blocks shares out: where columns and rows are too few for all multiprocessors,
// each of which takes in only so much, or where tiles as small as would occupy them all take in less. The
// blocks behind the first hand it their sums and their part of the statistics, which it adds in their order,
// so that results do not depend on who is ready first.
#pragma once

#include "cuda/hopper_cluster.cuh"
#include "cuda/hopper_tile.cuh"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda::hopper {

// Of a thread of a warpgroup.
template <typename C>
__device__ __forceinline__ void SendSums(const Block<C>& block, int group,
                                         const typename C::Accumulators& sums) {
  const uint32_t to = MapToBlock(block.PartSums(block.part, group), 0),
                 barrier = MapToBlock(block.SumsFull(), 0);
#pragma unroll
  for (int i = 0; i < C::kTokens / 2; i += 4)
    StoreToBlock(to + i / 4 * 2048, {sums[0][i], sums[0][i + 1], sums[0][i + 2], sums[0][i + 3]}, barrier);
}

template <typename C>
__device__ __forceinline__ void AddSums(const Block<C>& block, int group, typename C::Accumulators& sums) {
  BarrierWaitForCluster(block.SumsFull(), 0);
  for (int part = 1; part < block.p.k_parts; ++part) {
    const uint32_t from = block.PartSums(part, group);
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; i += 4) {
      uint32_t v[4];
      LoadVector(v, from + i / 4 * 2048);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[0][i + e] += __uint_as_float(v[e]);
    }
  }
}

// Of the one thread that has those of a row.
template <typename C>
__device__ __forceinline__ void SendMoments(const Block<C>& block, int row, const Moments& moments) {
  StoreToBlock(MapToBlock(block.PartMoments(block.part, row), 0),
               {moments.count, moments.mean, moments.squares, 0}, MapToBlock(block.MomentsFull(), 0));
}

template <typename C>
__device__ __forceinline__ void MergeMoments(const Block<C>& block, int row, Moments& moments) {
  BarrierWaitForCluster(block.MomentsFull(), 0);
  for (int part = 1; part < block.p.k_parts; ++part) {
    uint32_t v[4];
    LoadVector(v, block.PartMoments(part, row));
    moments.Merge({__uint_as_float(v[0]), __uint_as_float(v[1]), __uint_as_float(v[2])});
  }
}

}  // namespace qkvgemm::cuda::hopper
