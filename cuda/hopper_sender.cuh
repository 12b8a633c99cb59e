// Results of many rows from shared memory to the outputs.
#pragma once

#include "cuda/hopper_tile.cuh"

namespace qkvgemm::cuda::hopper {

// A warp beside the producer's sends a warpgroup's results on from shared memory, so that those that compute
// need not wait.
template <typename C>
class Sender {
 public:
  using T = typename C::T;

  __device__ Sender(const Block<C>& block, int group) : block_(block), p_(block.p), group_(group) {}

  __device__ void Run() const {
    int count = 0, stage = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      stage = (stage + block_.Pieces()) % C::kStages;
      Send(block_.At(tile), count, stage);
      stage = (stage + 1) % C::kStages;
    }
    if (p_.copy_stores && ElectOne()) StoreWait();  // before the block ends
  }

 private:
  static __device__ __forceinline__ int Lane() { return threadIdx.x % 32; }

  // tiles: sent before. stage: where the results come, which is given back.
  __device__ __forceinline__ void Send(const Place& place, int tiles, int stage) const {
    const int column0 = block_.FirstColumn(place, group_), end = block_.EndColumn(place);
    int split = 0;
    while (split + 1 < p_.splits && column0 >= p_.end[split]) ++split;
#pragma unroll 1
    for (int chunk = 0; chunk < C::kChunks; ++chunk) {
      const int i = chunk % C::kPlaces, turn = tiles * C::kRounds + chunk / C::kPlaces;
      BarrierWait(block_.ChunkFull(group_, i), turn % 2);
      if (column0 < end)
        SendChunk(block_.Chunk(stage, group_, i), place.rows * C::kTokens + chunk * C::kChunkRows, column0,
                  end, split);
      if (Lane() == 0) BarrierArrive(block_.ChunkEmpty(group_, i));
    }
    // As who computes does. In a cluster that is not all: its blocks have one tile, and no use for the stage.
    if (Lane() == 0) BarrierArrive(block_.Empty(stage), C::kReaders);
  }

  // Returns when the place has been read.
  __device__ __forceinline__ void SendChunk(uint32_t results, int row0, int column0, int end,
                                            int split) const {
    if (p_.copy_stores) {
      if (ElectOne()) {
        const int start = split ? p_.end[split - 1] : 0;
        if (p_.y[split] != nullptr) StoreTile(&block_.maps.y[split], column0 - start, row0, results);
        StoreCommit();
        StoreWaitRead<0>();
      }
      __syncwarp();
      return;
    }
#pragma unroll 1
    for (int token = Lane() / 8; token < C::kChunkRows && row0 + token < p_.m; token += 4) {
      uint32_t v[4];
      LoadVector(v, results + token * 128 + ((Lane() % 8 ^ (token & 7)) * 16));
      StoreElements(v, row0 + token, column0 + Lane() % 8 * 8, end, split);
    }
    FenceForCopies();  // the next that writes there is the copy engine
    __syncwarp();
  }

  // Eight columns that need not belong to one output; the first is of `split` or behind it.
  __device__ __forceinline__ void StoreElements(const uint32_t (&v)[4], int row, int column, int end,
                                                int split) const {
    while (split + 1 < p_.splits && column >= p_.end[split]) ++split;
    int start = split ? p_.end[split - 1] : 0;
    if (p_.vector_stores) {
      if (column < end && p_.y[split])
        *reinterpret_cast<uint4*>(static_cast<T*>(p_.y[split]) +
                                  static_cast<int64_t>(row) * (p_.end[split] - start) + column - start) =
            uint4{v[0], v[1], v[2], v[3]};
      return;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (column + e >= end) break;
      if (column + e >= p_.end[split]) start = p_.end[split++];
      if (p_.y[split])
        static_cast<uint16_t*>(
            p_.y[split])[static_cast<int64_t>(row) * (p_.end[split] - start) + column + e - start] =
            static_cast<uint16_t>(v[e / 2] >> (e % 2 * 16));
    }
  }

  const Block<C>& block_;
  const Params& p_;
  const int group_;
};

}  // namespace qkvgemm::cuda::hopper
