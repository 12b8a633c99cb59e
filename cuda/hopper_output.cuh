// From a tile's sums to the outputs. Floats go there straight from registers, because eight columns of a row,
// which lie in neighbouring lanes, fill a sector of 32 bytes; so do halves of few rows, whose way through
// shared memory would take longer than it saves. Other halves are handed to a Sender.
#pragma once

#include "cuda/hopper_cluster.cuh"
#include "cuda/hopper_tile.cuh"
#include "cuda/output.cuh"

namespace qkvgemm::cuda::hopper {

__device__ __forceinline__ void StoreTransposed(uint32_t address, const uint32_t (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3])
               : "memory");
}

// Of a warpgroup.
template <typename C>
class Results {
 public:
  using T = typename C::T;

  __device__ Results(const Block<C>& block, int group) : block_(block), p_(block.p), group_(group) {}

  // Of columns g and g + 8 of the warp's 16.
  struct Columns {
    Column low, high;
  };
  __device__ __forceinline__ Columns Load(const Place& place) const {
    const int column = block_.FirstColumn(place, group_) + Warp() * 16 + Lane() / 4;
    if (column >= p_.n)
      return {};  // those that are padded are there, but not those of a group behind the last
    const auto* const from = reinterpret_cast<const float4*>(p_.columns + column);
    const float4 low = __ldg(from), high = __ldg(from + 8);
    return {{low.x, low.y, low.z, 0}, {high.x, high.y, high.z, 0}};
  }

  // sums: at [4 j + 2 i + e] that of column g + 8 i of the warp's 16 and input row 8 j + 2 t + e. tiles:
  // written before by this block. stage: not filled, for the results.
  __device__ __forceinline__ void Write(const Place& place, const Columns& columns,
                                        const typename C::Accumulators& sums, int tiles, int stage) const {
    // They come once the kernel before has ended, whose inputs the outputs may be.
    if constexpr (C::kClusterStatistics) {
      BarrierWaitForCluster(block_.StatisticsFull(), tiles % 2);
    } else {
      BarrierWait(block_.StatisticsFull(), tiles % 2);
    }
    const Constants constants(block_, columns);
    if constexpr (C::kStaged) {
      // Also of columns behind the last, which the sender waits for as well: neither may get a turn ahead,
      // because a barrier tells a phase from the next but one only by who has not arrived.
#pragma unroll
      for (int chunk = 0; chunk < C::kChunks; ++chunk) {
        const int i = chunk % C::kPlaces, turn = tiles * C::kRounds + chunk / C::kPlaces;
        BarrierWait(block_.ChunkEmpty(group_, i), turn % 2 ^ 1);
        Stage(sums, constants, chunk, block_.Chunk(stage, group_, i));
        FenceForCopies();
        __syncwarp();
        if (Lane() == 0) BarrierArrive(block_.ChunkFull(group_, i));
      }
    } else {
      const int column0 = block_.FirstColumn(place, group_) + Warp() * 16, end = block_.EndColumn(place);
      if (column0 < end) StoreDirectly(sums, constants, place.rows * C::kTokens, column0, end);
    }
    __syncwarp();
    if (Lane() == 0) BarrierArrive(block_.StatisticsEmpty());
  }

 private:
  static __device__ __forceinline__ int Lane() { return threadIdx.x % 32; }
  static __device__ __forceinline__ int Warp() { return threadIdx.x / 32 % 4; }

  struct Constants {
    const Columns& columns;
    const uint32_t statistics;  // 0: none

    __device__ __forceinline__ Constants(const Block<C>& block, const Columns& columns)
        : columns(columns),
          statistics(block.TakesStatistics() || block.p.statistics ? block.Statistics() : 0) {}
    // Of rows `row` and the next.
    __device__ __forceinline__ void Rows(int row, RowStatistics& even, RowStatistics& odd) const {
      even = odd = {0, 1};
      if (statistics == 0) return;
      uint32_t v[4];
      LoadVector(v, statistics + row * static_cast<int>(sizeof(RowStatistics)));
      even = {__uint_as_float(v[0]), __uint_as_float(v[1])};
      odd = {__uint_as_float(v[2]), __uint_as_float(v[3])};
    }
  };

  // Those of eight rows.
  static __device__ __forceinline__ const typename C::Accumulator* Sums(const typename C::Accumulators& sums,
                                                                        int block) {
    constexpr int kBlocks = C::kTokens / C::kHalves / 8;
    return sums[block / kBlocks] + block % kBlocks * 4;
  }

  // Results as T, row by row, in the 128-byte swizzle.
  __device__ __forceinline__ void Stage(const typename C::Accumulators& sums, const Constants& constants,
                                        int chunk, uint32_t results) const {
    const int lane = Lane(), t = lane % 4;
    const int token = lane / 16 * 8 + lane % 8, piece = Warp() * 2 + lane / 8 % 2;
    const uint32_t to = results + token * 128 + ((piece ^ (token & 7)) * 16);
#pragma unroll
    for (int j = 0; j < C::kChunkRows / 8; j += 2) {
      uint32_t r[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int block = chunk * (C::kChunkRows / 8) + j + i;
        const auto* d = Sums(sums, block);
        RowStatistics even, odd;
        constants.Rows(block * 8 + t * 2, even, odd);
        r[2 * i] = Pack2<T>(Finish(constants.columns.low, static_cast<float>(d[0]), even),
                            Finish(constants.columns.low, static_cast<float>(d[1]), odd));
        r[2 * i + 1] = Pack2<T>(Finish(constants.columns.high, static_cast<float>(d[2]), even),
                                Finish(constants.columns.high, static_cast<float>(d[3]), odd));
      }
      StoreTransposed(to + j * 8 * 128, r);
    }
  }

  // Each instruction stores eight neighbouring columns of four rows.
  __device__ __forceinline__ void StoreDirectly(const typename C::Accumulators& sums,
                                                const Constants& constants, int row0, int column0,
                                                int end) const {
    const int t = Lane() % 4, column = column0 + Lane() / 4;
    const OutputColumn<T> low(p_, min(column, end - 1)), high(p_, min(column + 8, end - 1));
    const bool want_low = column < end && low.first, want_high = column + 8 < end && high.first;
#pragma unroll
    for (int j = 0; j < C::kTokens / 8; ++j) {
      const auto* d = Sums(sums, j);
      RowStatistics statistics[2];
      constants.Rows(j * 8 + t * 2, statistics[0], statistics[1]);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int row = row0 + j * 8 + t * 2 + e;
        if (row >= p_.m) continue;
        if (want_low)
          *low.Row(row) =
              static_cast<T>(Finish(constants.columns.low, static_cast<float>(d[e]), statistics[e]));
        if (want_high)
          *high.Row(row) =
              static_cast<T>(Finish(constants.columns.high, static_cast<float>(d[2 + e]), statistics[e]));
      }
    }
  }

  const Block<C>& block_;
  const Params& p_;
  const int group_;
};

}  // namespace qkvgemm::cuda::hopper
