// The kernel of the Hopper family: TMA, wgmma, warp specialisation, persistent blocks. For sm_90a only.
//
// Columns of W are the rows of the matrix instruction (64 for each warpgroup) and rows of the input its
// columns, so that a tile may have as few as 16 input rows, int8 weights can be widened in registers, and
// what a column needs in the end is held by one thread. A narrow tile's last warpgroup multiplies whatever
// lies behind its columns in shared memory, which spoils no other, and nothing of that is stored.
//
// One producer thread fills a ring of stages; kGroups warpgroups compute 64 columns each; the warps beside
// the producer's take the rows' statistics where rows are few, and send on the results where they are many.
#pragma once

#include "cuda/hopper_cluster.cuh"
#include "cuda/hopper_output.cuh"
#include "cuda/hopper_parts.cuh"
#include "cuda/hopper_sender.cuh"
#include "cuda/hopper_shared.cuh"
#include "cuda/hopper_statistics.cuh"
#include "cuda/hopper_statistics_turns.cuh"
#include "cuda/hopper_tile.cuh"
#include "cuda/launch.h"
#include "cuda/widen.cuh"

namespace qkvgemm::cuda::hopper {

template <typename C>
class Producer {
 public:
  __device__ explicit Producer(const Block<C>& block) : block_(block), p_(block.p) {
    if constexpr (C::kCluster) {
      for (int i = 0; i < p_.cluster_rows; ++i) same_columns_ |= 1 << (block.column + i * p_.cluster_columns);
      same_rows_ = ((1 << p_.cluster_columns) - 1) << (block.row * p_.cluster_columns);
      weights_part_ = C::kPieceBytes / p_.cluster_rows, weights_skip_ = block.row * weights_part_;
      rows_skip_ = block.column * (C::kTokens / p_.cluster_columns);
    }
  }

  __device__ void Run() const {
    const uint64_t policy = p_.evict_first ? PolicyEvictFirst() : PolicyEvictNormal();
    // Weights never depend on the kernel before: as many as fit are under way before its end is waited for.
    int loaded = min(C::kStages, block_.Pieces());
    const Columns first = ColumnsOf(block_.At(block_.first));
    for (int i = 0; i < loaded; ++i) LoadWeights(first, i, i, policy);
    WaitForPrevious();
    Ring ring;
    int count = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      const Place place = block_.At(tile);
      const Columns columns = ColumnsOf(place);
      for (int kb = 0; kb < block_.Pieces(); ++kb) {
        if (loaded > 0) {
          --loaded;
        } else {
          BarrierWait(block_.Empty(ring.stage), ring.parity ^ 1);
          LoadWeights(columns, kb, ring.stage, policy);
        }
        LoadRows(place, kb, ring.stage);
        ring.Next(C::kStages);
        if (!block_.SharesStatistics() && kb == max(0, block_.Pieces() - C::kStages))
          LoadStatistics(place, count);
      }
      if (block_.SharesStatistics()) LoadStatistics(place, count);
      if constexpr (C::kStaged) {  // a stage for the results
        if (!block_.WritesResults()) continue;
        BarrierWait(block_.Empty(ring.stage), ring.parity ^ 1);
        BarrierArrive(block_.Full(ring.stage));
        ring.Next(C::kStages);
      }
    }
    // Other blocks say here that they have read what came from this one, which must not be gone before.
    if constexpr (C::kCluster)
      for (int kb = max(0, p_.pieces_per_row - C::kStages); kb < p_.pieces_per_row; ++kb)
        BarrierWait(block_.Empty(kb % C::kStages), kb / C::kStages % 2);
  }

 private:
  // What a tile takes of each 64 columns that it has a part of, of each piece of K. A narrow tile may begin
  // and end within one.
  static constexpr int kMostCopies =
      MayBeNarrow(C::kPacking, C::kTokens, C::kParts) ? C::kGroups + 1 : C::kGroups;
  struct Columns {
    const char* source;  // of the first piece of K
    int skip;            // bytes of the first 64 columns before the tile's
    int bytes[kMostCopies], all_bytes;
  };

  __device__ __forceinline__ Columns ColumnsOf(const Place& place) const {
    const int first = block_.FirstColumn(place), skip = first % kPieceColumns * C::kColumnBytes;
    Columns columns;
    columns.skip = skip;
    columns.source = static_cast<const char*>(p_.weights) +
                     (static_cast<int64_t>(first / kPieceColumns) * p_.pieces_per_row + block_.FirstPiece()) *
                         C::kPieceBytes +
                     (C::kCluster ? weights_skip_ : skip);
    columns.all_bytes = min(p_.tile_columns, p_.piece_rows * kPieceColumns - first) * C::kColumnBytes;
    int left = columns.all_bytes;
#pragma unroll
    for (int i = 0; i < kMostCopies; ++i) {
      columns.bytes[i] = min(C::kPieceBytes - (i == 0 ? skip : 0), left);
      left -= columns.bytes[i];
    }
    return columns;
  }

  __device__ __forceinline__ void LoadWeights(const Columns& columns, int kb, int stage,
                                              uint64_t policy) const {
    const uint32_t full = block_.Full(stage);
    BarrierExpect(full, C::kRowBytes + columns.all_bytes + (C::kWiden ? kFactorBytes : 0));
    const char* source = columns.source + static_cast<int64_t>(kb) * C::kPieceBytes;
    const int64_t next = static_cast<int64_t>(p_.pieces_per_row) * C::kPieceBytes;
    const uint32_t target = block_.Stage(stage) + C::kRowBytes;
#pragma unroll
    for (int i = 0; i < kMostCopies; ++i) {
      if (i > 0 && columns.bytes[i] == 0) break;
      if constexpr (C::kCluster) {  // whole pieces
        CopyBulkToBlocks(target + i * C::kPieceBytes + weights_skip_, source + i * next, weights_part_, full,
                         same_columns_, policy);
      } else {
        const int skip = i == 0 ? 0 : columns.skip;
        CopyBulk(target + i * C::kPieceBytes - skip, source + i * next - skip, columns.bytes[i], full,
                 policy);
      }
    }
    if constexpr (C::kWiden)
      CopyBulk(block_.Stage(stage) + C::kFactorsAt,
               static_cast<const char*>(p_.factors) +
                   static_cast<int64_t>(block_.FirstPiece() + kb) * kFactorBytes,
               kFactorBytes, full, PolicyEvictNormal());
  }
  __device__ __forceinline__ void LoadRows(const Place& place, int kb, int stage) const {
    if constexpr (C::kCluster) {
      CopyTileToBlocks(block_.Stage(stage) + rows_skip_ * 128, &block_.maps.rows, kb * C::kPieceDepth,
                       place.rows * C::kTokens + rows_skip_, block_.Full(stage), same_rows_);
    } else {
      CopyTile(block_.Stage(stage), &block_.maps.rows, (block_.FirstPiece() + kb) * C::kPieceDepth,
               place.rows * C::kTokens, block_.Full(stage));
    }
  }
  // Where they are not taken here: those of the tile's rows, once those of the tile before are done with.
  __device__ __forceinline__ void LoadStatistics(const Place& place, int tiles) const {
    if (block_.TakesStatistics() || block_.SendsStatistics() || !block_.WritesResults()) return;
    const uint32_t full = block_.StatisticsFull();
    BarrierWait(block_.StatisticsEmpty(), tiles % 2 ^ 1);
    if constexpr (C::kShares)
      if (block_.SharesStatistics()) SharedStatistics<C>::Wait(p_, place.rows);
    BarrierExpect(full, p_.statistics ? C::kStatisticsBytes : 0);
    if (p_.statistics)
      CopyBulk(block_.Statistics(), p_.statistics + static_cast<int64_t>(place.rows) * C::kTokens,
               C::kStatisticsBytes, full, PolicyEvictNormal());
  }

  const Block<C>& block_;
  const Params& p_;
  // Of a cluster: the blocks with the same columns and rows, and the part that this one loads for them.
  uint16_t same_columns_ = 0, same_rows_ = 0;
  int weights_part_ = 0, weights_skip_ = 0, rows_skip_ = 0;
};

// One warpgroup.
template <typename C>
class Consumer {
 public:
  __device__ Consumer(const Block<C>& block, int group)
      : block_(block), p_(block.p), group_(group), results_(block, group) {
    if constexpr (C::kCluster) {
      // The blocks that load what this one reads: those with the same columns or rows.
      const int i = threadIdx.x % 128, columns = p_.cluster_columns, other = i - columns;
      const int rank = i < columns ? block.row * columns + i
                                   : (other + (other >= block.row ? 1 : 0)) * columns + block.column;
      if (i < columns + p_.cluster_rows - 1) empty_ = MapToBlock(block.Empty(0), rank);
    }
  }

  __device__ void Run() {
    int count = 0;
    for (int tile = block_.first; tile < block_.Tiles(); tile += block_.step, ++count) {
      typename C::Accumulators sums;
      if constexpr (C::kWiden) {
        MultiplyWidened(sums);
      } else {
        Multiply(sums);
      }
      if constexpr (C::kParts)
        if (!block_.WritesResults()) {
          WgmmaWait<0>();
          Settle(sums);
          SendSums<C>(block_, group_, sums);
          continue;
        }
      // While the last products are on their way: divisions, loads, and a wait that is over then.
      Place place = block_.At(tile);
      const auto columns = results_.Load(place);
      if constexpr (C::kStaged) BarrierWait(block_.Full(ring_.stage), ring_.parity);
      Keep(place.rows), Keep(place.columns);
      WgmmaWait<0>();
      Settle(sums);
      Release(last_);
      if constexpr (C::kParts) AddSums<C>(block_, group_, sums);
      results_.Write(place, columns, sums, count, ring_.stage);
      if constexpr (C::kStaged) ring_.Next(C::kStages);
    }
  }

 private:
  __device__ __forceinline__ void Release(int stage) const {
    if constexpr (C::kCluster) {
      if (empty_ != 0) BarrierArriveAt(empty_ + 8 * stage);
    } else {
      if constexpr (C::kReaders == 4) __syncwarp();
      if (threadIdx.x % (128 / C::kReaders) == 0) BarrierArrive(block_.Empty(stage));
    }
  }

  // Computes a value before what is waited for next.
  static __device__ __forceinline__ void Keep(int& value) { asm volatile("" : "+r"(value)::"memory"); }
  // Nothing that reads the sums is moved before what waited for them.
  static __device__ __forceinline__ void Settle(typename C::Accumulators& sums) {
#pragma unroll
    for (auto& half : sums)
#pragma unroll
      for (auto& sum : half) {
        if constexpr (C::kInt8Rows) {
          asm volatile("" : "+r"(sum)::"memory");
        } else {
          asm volatile("" : "+f"(sum)::"memory");
        }
      }
  }

  // When it returns, the last products are on their way, and their stage is not released.
  __device__ __forceinline__ void Multiply(typename C::Accumulators& sums) {
    for (int kb = 0; kb < block_.Pieces(); ++kb) {
      BarrierWait(block_.Full(ring_.stage), ring_.parity);
      const uint32_t at = block_.Stage(ring_.stage);
      const uint64_t a = WgmmaDescriptor(at + C::kRowBytes + group_ * C::kPieceBytes),
                     b = WgmmaDescriptor(at);
      WgmmaFence();
#pragma unroll
      for (int s = 0; s < 4; ++s)
#pragma unroll
        for (int h = 0; h < C::kHalves; ++h)
          C::Matrix::Ss(sums[h], a + s * 2, b + h * (C::kRowBytes / C::kHalves / 16) + s * 2,
                        kb > 0 || s > 0);
      WgmmaCommit();
      // These products may run on while the next are begun; those before have read their stage.
      WgmmaWait<1>();
      if (kb > 0) Release(last_);
      last_ = ring_.stage;
      ring_.Next(C::kStages);
    }
  }

  // The same for int8 weights, which are widened for the next stage while this one is multiplied.
  __device__ __forceinline__ void MultiplyWidened(typename C::Accumulators& sums) {
    const int pieces = block_.Pieces();
    uint32_t a[2][4][4];
    WidenStage(a[0]);
    const auto step = [&](int kb, const uint32_t(&now)[4][4], uint32_t(&next)[4][4])
        __attribute__((always_inline)) {
      const int stage = ring_.stage;
      const uint64_t b = WgmmaDescriptor(block_.Stage(stage));
      WgmmaFence();
#pragma unroll
      for (int s = 0; s < 4; ++s) C::Matrix::Rs(sums[0], now[s], b + s * 2, kb > 0 || s > 0);
      WgmmaCommit();
      WgmmaWait<1>();  // the products before have read `next` and their stage
      if (kb > 0) Release(last_);
      last_ = stage;
      ring_.Next(C::kStages);
      if (kb + 1 < pieces) WidenStage(next);
    };
    for (int kb = 0; kb < pieces; kb += 2) {
      step(kb, a[0], a[1]);
      if (kb + 1 < pieces) step(kb + 1, a[1], a[0]);
    }
  }
  __device__ __forceinline__ void WidenStage(uint32_t (&a)[4][4]) const {
    BarrierWait(block_.Full(ring_.stage), ring_.parity);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
    const uint32_t stage = block_.Stage(ring_.stage),
                   weights = stage + C::kRowBytes + group_ * C::kPieceBytes;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t w[4], factors[4];
      LoadVector(w, weights + ((warp * 2 + h) * 32 + lane) * 16);
      LoadVector(factors, stage + C::kFactorsAt + (lane % 4 * 2 + h) * 16);
      WidenSteps<typename C::T>(w, factors, a[2 * h], a[2 * h + 1]);
    }
  }

  const Block<C>& block_;
  const Params& p_;
  const int group_;
  Results<C> results_;
  Ring ring_;
  int last_ = 0;        // stage of the last products
  uint32_t empty_ = 0;  // of a cluster: where this thread says that a stage has been read, of the first one
};

template <int kRegisters>
__device__ __forceinline__ void GrowRegisters() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void ShrinkRegisters() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <typename C>
__global__ void __launch_bounds__(C::kThreads, 1)
    HopperKernel(const __grid_constant__ Maps maps, const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char shared[];  // as swizzles want it
  // Values of a warp are shuffled, so that the compiler knows its threads to have the same and keeps what it
  // makes of them in uniform registers, and does not ask anew where shared memory lies.
  const uint32_t stages = __shfl_sync(~0u, SharedAddress(shared), 0);
  const int rank = C::kCluster ? static_cast<int>(blockIdx.x) % (p.cluster_columns * p.cluster_rows) : 0;
  const int parts = C::kParts ? p.k_parts : 1;
  const Block<C> block{p,
                       maps,
                       stages,
                       static_cast<int>(blockIdx.x) / parts,
                       static_cast<int>(gridDim.x) / parts,
                       C::kCluster ? rank % p.cluster_columns : 0,
                       C::kCluster ? rank / p.cluster_columns : 0,
                       C::kParts ? static_cast<int>(blockIdx.x) % parts : 0};
  LetNextStart();
  if (threadIdx.x == 0) block.InitBarriers();
  if constexpr (C::kCluster || C::kParts) {
    ClusterSync();  // the others' barriers and memory are there
  } else {
    __syncthreads();
  }
  const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), role = warp / 4;
  if (role == 0) {
    if constexpr (C::kConsumerRegisters > 0) ShrinkRegisters<C::kProducerRegisters>();
    if (warp == 0) {
      if (ElectOne()) Producer<C>(block).Run();
    } else {
      if constexpr (C::kMoments && !C::kStatisticsGroup)
        if (block.TakesStatistics()) StatisticsInTurns<C>(block, warp - 1).Run();
      if constexpr (C::kShares)
        if (block.SharesStatistics()) SharedStatistics<C>(block).Run();
      if (C::kStaged && warp <= C::kGroups && block.WritesResults()) Sender<C>(block, warp - 1).Run();
    }
  } else if (role <= C::kGroups) {
    if constexpr (C::kConsumerRegisters > 0) GrowRegisters<C::kConsumerRegisters>();
    Consumer<C>(block, role - 1).Run();
  } else if constexpr (C::kStatisticsGroup) {
    if (block.TakesStatistics()) StatisticsRole<C>(block, warp % 4).Run();
  } else if constexpr (C::kClusterStatistics) {
    if (block.SendsStatistics()) ClusterStatistics<C>(block, warp % 4).Run();
  }
}

}  // namespace qkvgemm::cuda::hopper
