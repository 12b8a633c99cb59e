// From a tile's sums to the outputs.
#pragma once

#include "cuda/hopper_tile.cuh"
#include "cuda/output.cuh"

namespace qkvgemm::cuda::hopper {

__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}
__device__ __forceinline__ void LoadShared(float4& v, uint32_t address) {
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(address)
               : "memory");
}
// Of one warpgroup.
template <typename C>
class Output {
 public:
  using Accumulators = typename C::Accumulator[C::kTokens / 2];

  __device__ Output(const Block<C>& block, int group) : block_(block), p_(block.p), group_(group) {}

  // sums: at [4 j + 2 i + e] that of column g + 8 i of the warp's 16 and input row 8 j + 2 t + e. tiles:
  // written before by this block.
  __device__ __forceinline__ void Write(const Place& place, const Accumulators& sums, int tiles) const {
    if (block_.TakesStatistics()) block_.SyncAll();
    // The constants come once the kernel before has ended, whose inputs the outputs may be.
    BarrierWait(block_.ConstantsFull(), tiles % 2);
    const int column0 = (block_.FirstPieceRow(place) + group_) * kPieceColumns,
              row0 = place.rows * C::kTokens;
    if (column0 < p_.n) {  // the same for the whole warpgroup
      int split = 0;
      while (split + 1 < p_.splits && column0 >= p_.end[split]) ++split;
      const Constants constants(block_, group_, tiles);
      if constexpr (C::kStaged) {
#pragma unroll
        for (int chunk = 0; chunk < C::kChunks; ++chunk) {
          const uint32_t results = block_.Chunk(group_, chunk % C::kChunkPlaces);
          // What was there has left.
          if (p_.copy_stores && Thread() == 0) StoreWaitRead<C::kChunkPlaces - 1>();
          block_.SyncGroup(group_);
          Stage(sums, constants, chunk, results);
          if (p_.copy_stores) FenceForCopies();
          block_.SyncGroup(group_);
          Store(results, row0 + chunk * C::kChunkRows, column0, split);
        }
      } else {
        StoreDirectly(sums, constants, row0, column0);
        block_.SyncGroup(group_);  // the constants have been read
      }
    }
    if (Thread() == 0) BarrierArrive(block_.ConstantsEmpty());
  }

  // Before the block ends, which would take the memory away.
  __device__ __forceinline__ void Finish() const {
    if (p_.copy_stores && Thread() == 0) StoreWait();
  }

 private:
  static __device__ __forceinline__ int Thread() { return threadIdx.x % 128; }

  struct Constants {
    Column low, high;     // of columns g and g + 8 of the warp's 16
    uint32_t statistics;  // 0: none

    __device__ __forceinline__ Constants(const Block<C>& block, int group, int tiles) {
      const uint32_t columns = block.Columns(group) + (Thread() / 32 * 16 + Thread() % 32 / 4) * 16;
      Load(low, columns);
      Load(high, columns + 8 * 16);
      statistics = block.TakesStatistics() ? block.Statistics(tiles % 2)
                   : block.p.statistics    ? block.Statistics(0)
                                           : 0;
    }
    static __device__ __forceinline__ void Load(Column& column, uint32_t address) {
      float4 v;
      LoadShared(v, address);
      column = {v.x, v.y, v.z, v.w};
    }
    // Mean and rstd of rows `row` and the next.
    __device__ __forceinline__ float4 Rows(int row) const {
      float4 s = {0, 1, 0, 1};
      if (statistics) LoadShared(s, statistics + row * 8);
      return s;
    }
  };

  // Results as T, row by row, in the 128-byte swizzle.
  __device__ __forceinline__ void Stage(const Accumulators& sums, const Constants& constants, int chunk,
                                        uint32_t results) const {
    using T = typename C::T;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < C::kChunkRows / 8; j += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int block = chunk * (C::kChunkRows / 8) + j + i;
        const auto* d = sums + block * 4;
        const float4 s = constants.Rows(block * 8 + t * 2);
        const RowStatistics even = {s.x, s.y}, odd = {s.z, s.w};
        r[2 * i] = Pack2<T>(cuda::Finish(constants.low, static_cast<float>(d[0]), even),
                            cuda::Finish(constants.low, static_cast<float>(d[1]), odd));
        r[2 * i + 1] = Pack2<T>(cuda::Finish(constants.high, static_cast<float>(d[2]), even),
                                cuda::Finish(constants.high, static_cast<float>(d[3]), odd));
      }
      const int token = j * 8 + lane / 16 * 8 + lane % 8, piece = warp * 2 + lane / 8 % 2;
      StoreTransposed(results + token * 128 + ((piece ^ (token & 7)) * 16), r);
    }
  }

  // In float32: each instruction stores eight neighbouring columns of four rows.
  __device__ __forceinline__ void StoreDirectly(const Accumulators& sums, const Constants& constants,
                                                int row0, int column0) const {
    using T = typename C::T;
    const int lane = threadIdx.x % 32, t = lane % 4;
    const int column = column0 + Thread() / 32 * 16 + lane / 4;
    const OutputColumn<T> low(p_, min(column, p_.n - 1)), high(p_, min(column + 8, p_.n - 1));
    const bool want_low = column < p_.n && low.first, want_high = column + 8 < p_.n && high.first;
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      const auto* d = sums + j * 4;
      const float4 s = constants.Rows(j * 8 + t * 2);
      const RowStatistics statistics[2] = {{s.x, s.y}, {s.z, s.w}};
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = row0 + j * 8 + t * 2 + e;
        if (row >= p_.m) continue;
        if (want_low) *low.Row(row) = cuda::Finish(constants.low, static_cast<float>(d[e]), statistics[e]);
        if (want_high)
          *high.Row(row) = cuda::Finish(constants.high, static_cast<float>(d[2 + e]), statistics[e]);
      }
    }
  }

  __device__ __forceinline__ void Store(uint32_t results, int row0, int column0, int split) const {
    if (!p_.copy_stores) {
      for (int token = Thread() / 8; token < C::kChunkRows && row0 + token < p_.m; token += 16) {
        uint32_t v[4];
        LoadVector(v, results + token * 128 + ((Thread() % 8 ^ (token & 7)) * 16));
        StoreElements(v, row0 + token, column0 + Thread() % 8 * 8, split);
      }
    } else if (Thread() == 0) {
      const int start = split ? p_.end[split - 1] : 0;
      if (p_.y[split] != nullptr) StoreTile(&block_.maps.y[split], column0 - start, row0, results);
      StoreCommit();
    }
  }

  // Eight columns that need not belong to one output; the first is of `split` or behind it.
  __device__ __forceinline__ void StoreElements(const uint32_t (&v)[4], int row, int column,
                                                int split) const {
    using T = typename C::T;
    while (split + 1 < p_.splits && column >= p_.end[split]) ++split;
    int start = split ? p_.end[split - 1] : 0;
    if (p_.vector_stores) {
      if (column < p_.n && p_.y[split])
        *reinterpret_cast<uint4*>(static_cast<T*>(p_.y[split]) +
                                  static_cast<int64_t>(row) * (p_.end[split] - start) + column - start) =
            uint4{v[0], v[1], v[2], v[3]};
      return;
    }
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      if (column + e >= p_.n) break;
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
