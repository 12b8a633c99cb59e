// Few rows: one pass over W at the speed of memory, on mma.sync (sm_75 and later).
//
// A block computes some groups of 16 columns for all rows, and its warps share the pieces along K. W goes
// from memory to registers in 16-byte loads, all of a step of 128 bytes of k (256 for halves from int8) while
// the step before is computed, and is never shared. A sum over k may be taken in any order as long as W and
// the rows agree, so:
//
// - kHalf, kInt8Activations, kTf32: lane (g, t) takes chunks t and 4 + t of columns g and g + 8, and
//   the same chunks of the input's row g, straight from memory as well.
//   Floats keep their digits: memory is what takes time, so that products with what TensorFloat32 leaves out
//   of either operand come free. One row of floats is multiplied without matrix instructions, whose sums are
//   cut off and not rounded.
// - kInt8: W lies in fragment order, and gamma beside; the rows come through a ring in shared memory, one for
// each warp.
#pragma once

#include "cuda/launch.h"
#include "cuda/output.cuh"
#include "cuda/shared.cuh"
#include "cuda/stream_tile.cuh"
#include "cuda/widen.cuh"

namespace qkvgemm::cuda::stream {

// Read once: not kept in the L1 cache, and asked for in long runs.
__device__ __forceinline__ uint4 LoadStream(const uint4* p) {
  uint4 v;
#if __CUDA_ARCH__ >= 800
#define QKV_PREFETCH ".L2::256B"
#else
#define QKV_PREFETCH ".L2::128B"
#endif
  asm volatile("ld.global.nc.L1::no_allocate" QKV_PREFETCH ".v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
#undef QKV_PREFETCH
  return v;
}
__device__ __forceinline__ void PrefetchL2(const void* p) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

template <typename C>
class Block {
 public:
  __device__ __forceinline__ Block(const Params& p, char* shared) : p_(p), shared_(shared) {
    const int groups = (p.n + kGroupColumns - 1) / kGroupColumns;
    const int lane_vector = C::kWiden ? lane_ : g_ * 8 + ((t_ ^ (g_ & 3)) | (g_ & 4));
#pragma unroll
    for (int i = 0; i < C::kGroups; ++i) {
      // Groups behind the last are computed as the last, and not written.
      const int group = min(static_cast<int>(blockIdx.x) * C::kGroups + i, groups - 1);
      weights_[i] = static_cast<const uint4*>(p.weights) +
                    static_cast<int64_t>(group / 4) * p.pieces_per_row * C::kPieceVectors +
                    group % 4 * C::kGroupVectors + lane_vector;
    }
  }

  __device__ __forceinline__ void Run() {
    const int steps = (p_.pieces_per_row + C::kPiecesPerStep - 1) / C::kPiecesPerStep;
    LetNextStart();
    if (warp_ < steps) {
#pragma unroll
      for (int i = 0; i < C::kGroups; ++i) {
        LoadWeights(warp_, 0, i);
        LoadWeights(warp_, 1, i);
      }
      LoadFactors(warp_, 0);
      LoadFactors(warp_, 1);
    }
    if (threadIdx.x < C::kColumns && FirstColumn() + static_cast<int>(threadIdx.x) < p_.n)
      PrefetchL2(p_.columns + FirstColumn() + threadIdx.x);
    // Weights never depend on the kernel before. Everything else does.
    WaitForPrevious();
    if constexpr (C::kWiden) {
      MultiplyWidened(steps);
    } else {
      MultiplyDirectly(steps);
    }
    Write();
  }

 private:
  __device__ __forceinline__ int FirstColumn() const { return blockIdx.x * C::kColumns; }

  // A step has two halves: of 64 bytes of k, or of one piece of int8.
  __device__ __forceinline__ void LoadWeights(int step, int half, int group) {
    const uint4* from = weights_[group];
    if constexpr (C::kWiden) {
      if (step * 2 + half >= p_.pieces_per_row) return;  // what is there meets zeros
      from += static_cast<int64_t>(step * 2 + half) * C::kPieceVectors;
    } else {
      // The chunk 4 + t lies where t does but for one bit.
      from += static_cast<int64_t>(step) * C::kPieceVectors + (half ? 4 - (g_ & 4) * 2 : 0);
    }
    w_[group][half][0] = LoadStream(from);
    w_[group][half][1] = LoadStream(from + C::kSecondVector);
  }
  // By which the weights of a half step are multiplied; nothing where there are none.
  __device__ __forceinline__ void LoadFactors(int step, int half) {
    if constexpr (C::kWiden) {
      if (step * 2 + half >= p_.pieces_per_row) return;
      const auto* from =
          static_cast<const uint4*>(p_.factors) + static_cast<int64_t>(step * 2 + half) * 8 + t_ * 2;
      factors_[half][0] = __ldg(from);
      factors_[half][1] = __ldg(from + 1);
    }
  }

  __device__ __forceinline__ void MultiplyDirectly(int steps) {
    uint4 x[2][C::kBlocks];
    const auto load = [&](int step, int half) __attribute__((always_inline)) {
      const int64_t at = RowByte(step, half);
#pragma unroll
      for (int j = 0; j < C::kBlocks; ++j) {
        const int row = C::kOneRow ? 0 : j * 8 + g_;
        x[half][j] = uint4{0, 0, 0, 0};
        if (row < p_.m && at < p_.row_bytes)
          x[half][j] =
              *reinterpret_cast<const uint4*>(static_cast<const char*>(p_.rows) + row * p_.row_bytes + at);
      }
    };
    if (warp_ < steps) load(warp_, 0), load(warp_, 1);
    for (int step = warp_; step < steps; step += kWarps) {
      const int next = step + kWarps;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i) {
          const uint4 low = w_[i][half][0], high = w_[i][half][1];
#pragma unroll
          for (int j = 0; j < C::kBlocks; ++j) {
            if constexpr (C::kOneRow) {
              MultiplyRow(sums_[i][j][0], low, x[half][j]);
              MultiplyRow(sums_[i][j][2], high, x[half][j]);
              continue;
            }
            Multiply(sums_[i][j], {low.x, high.x, low.y, high.y}, x[half][j].x, x[half][j].y);
            Multiply(sums_[i][j], {low.z, high.z, low.w, high.w}, x[half][j].z, x[half][j].w);
          }
          if (next < steps) LoadWeights(next, half, i);
        }
        // Only now: until the weights of the next step are asked for, the memory waits.
        if constexpr (C::kMoments) {
          if (p_.norm != NormType::kNone) {
#pragma unroll
            for (int j = 0; j < C::kBlocks; ++j) {
              const uint32_t words[4] = {x[half][j].x, x[half][j].y, x[half][j].z, x[half][j].w};
              AddMoments(j, words, step == warp_ && half == 0,
                         p_.k - static_cast<int>(RowByte(step, half) / 2), [](int i) { return i; });
            }
          }
        }
        if (next < steps) load(next, half);
      }
    }
  }
  static __device__ __forceinline__ void Multiply(typename C::Sum (&sums)[4], const uint32_t (&w)[4],
                                                  uint32_t x0, uint32_t x1) {
    using M = Mma<typename C::Element>;
    if constexpr (std::is_same_v<typename C::Element, float>) {
      const Tf32Parts a[] = {Tf32Parts(w[0]), Tf32Parts(w[1]), Tf32Parts(w[2]), Tf32Parts(w[3])};
      const Tf32Parts b[] = {Tf32Parts(x0), Tf32Parts(x1)};
      M::Run(sums, {a[0].high, a[1].high, a[2].high, a[3].high}, b[0].low, b[1].low);
      M::Run(sums, {a[0].low, a[1].low, a[2].low, a[3].low}, b[0].high, b[1].high);
    }
    M::Run(sums, w, x0, x1);
  }
  static __device__ __forceinline__ void MultiplyRow(float& sum, const uint4& w, const uint4& x) {
    sum = fmaf(UnpackTf32(w.x), UnpackTf32(x.x), sum);
    sum = fmaf(UnpackTf32(w.y), UnpackTf32(x.y), sum);
    sum = fmaf(UnpackTf32(w.z), UnpackTf32(x.z), sum);
    sum = fmaf(UnpackTf32(w.w), UnpackTf32(x.w), sum);
  }
  // Pairs of values of row g, of which `left` values and more are there from where value i lies `at(i)`.
  template <int kWords, typename At>
  __device__ __forceinline__ void AddMoments(int j, const uint32_t (&words)[kWords], bool first, int left,
                                             const At& at) {
    float v[2 * kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) Unpack2<typename C::T>(words[i], v[2 * i], v[2 * i + 1]);
    if (at(2 * kWords - 1) < left) {
      if (first) moments_[j].Start(v, 2 * kWords);
      moments_[j].Add(v);
    } else {
      int valid = 0;
#pragma unroll
      for (int i = 0; i < 2 * kWords; ++i) valid += at(i) < left;
      if (first) moments_[j].Start(v, valid);
      moments_[j].AddIf(v, valid, [&](int i) { return at(i) < left; });
    }
  }
  // Of the input's rows: where this lane's chunk begins.
  __device__ __forceinline__ int64_t RowByte(int step, int half) const {
    return static_cast<int64_t>(step) * kPieceRowBytes + half * 64 + t_ * 16;
  }

  __device__ __forceinline__ void MultiplyWidened(int steps) {
    const uint32_t ring = SharedAddress(shared_) + warp_ * C::kStages * C::kStageBytes;
    Copies<C::kTokens / 4> copies;
    // Every half step has its group of copies, though it may be empty.
    const auto copy = [&](int step, int half, int stage) __attribute__((always_inline)) {
      const int chunk = lane_ % 8;
      const int64_t at = static_cast<int64_t>(step * 2 + half) * kPieceRowBytes + chunk * 16;
      if (step < steps) {
#pragma unroll
        for (int i = 0; i < C::kTokens / 4; ++i) {
          const int row = i * 4 + lane_ / 8;
          const bool there = row < p_.m && at < p_.row_bytes;
          copies.Start(i, ring + stage * C::kStageBytes + row * kPieceRowBytes + ((chunk ^ (row & 7)) * 16),
                       static_cast<const char*>(p_.rows) + (there ? row * p_.row_bytes + at : 0), there);
        }
      }
      CommitCopies();
    };
    const auto finish = [&](int step) __attribute__((always_inline)) {
      if (step < steps) copies.Finish();
    };
    copy(warp_, 0, 0), finish(warp_);
    copy(warp_, 1, 1), finish(warp_);
    int stage = 0;
    for (int step = warp_; step < steps; step += kWarps) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        WaitForCopies<1>();
        __syncwarp();
        // Into the stage of the half step before, which every lane has done with.
        copy(step + kWarps, half, stage == 0 ? 2 : stage - 1);
        uint32_t x[C::kBlocks][2][4];  // [1]: the second 32 of k; of each, two steps of 16
#pragma unroll
        for (int j = 0; j < C::kBlocks; ++j)
#pragma unroll
          for (int h = 0; h < 2; ++h)
            LoadMatrices(x[j][h], ring + stage * C::kStageBytes + (j * 8 + lane_ % 8) * kPieceRowBytes +
                                      (((h * 4 + lane_ / 8) ^ lane_ % 8) * 16));
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i) {
#pragma unroll
          for (int h = 0; h < 2; ++h) {
            const uint4 w = w_[i][half][h], f = factors_[half][h];
            uint32_t a[2][4];
            WidenSteps<typename C::T>({w.x, w.y, w.z, w.w}, {f.x, f.y, f.z, f.w}, a[0], a[1]);
#pragma unroll
            for (int j = 0; j < C::kBlocks; ++j) {
              Mma<typename C::Element>::Run(sums_[i][j], a[0], x[j][h][0], x[j][h][1]);
              Mma<typename C::Element>::Run(sums_[i][j], a[1], x[j][h][2], x[j][h][3]);
            }
          }
          if (step + kWarps < steps) LoadWeights(step + kWarps, half, i);
        }
        if (step + kWarps < steps) LoadFactors(step + kWarps, half);
        if (p_.norm != NormType::kNone) {
          const int t = t_;
#pragma unroll
          for (int j = 0; j < C::kBlocks; ++j) {
            const uint32_t words[8] = {x[j][0][0], x[j][0][1], x[j][0][2], x[j][0][3],
                                       x[j][1][0], x[j][1][1], x[j][1][2], x[j][1][3]};
            AddMoments(j, words, step == warp_ && half == 0, p_.k - (step * 2 + half) * 64,
                       [t](int i) { return i / 2 * 8 + t * 2 + i % 2; });
          }
        }
        finish(step + kWarps);
        stage = stage == 2 ? 0 : stage + 1;
      }
    }
    __syncthreads();  // the rings become the place of the sums
  }

  __device__ __forceinline__ void Write() {
    Column columns[C::kRounds][C::kLaneColumns];
#pragma unroll
    for (int round = 0; round < C::kRounds; ++round)
#pragma unroll
      for (int i = 0; i < C::kLaneColumns; ++i)
        columns[round][i] =
            p_.columns[min(FirstColumn() + round * C::kRoundColumns + i * 32 + lane_, p_.n - 1)];
    auto* const sums = reinterpret_cast<typename C::Sum*>(shared_);             // [warp][column][row]
    auto* const moments = reinterpret_cast<Moments*>(shared_ + C::kSumsBytes);  // [warp][row]
    if constexpr (C::kMoments) ShareMoments(moments);
#pragma unroll
    for (int round = 0; round < C::kRounds; ++round) {
      if (round > 0) __syncthreads();
#pragma unroll
      for (int i = 0; i < C::kRoundGroups; ++i)
#pragma unroll
        for (int j = 0; j < C::kBlocks; ++j) {
          auto& d = sums_[round * C::kRoundGroups + i][j];
          auto* to =
              sums + (warp_ * C::kRoundColumns + i * kGroupColumns + g_) * C::kSumPitch + j * 8 + t_ * 2;
          if constexpr (C::kOneRow) {
            for (int o = 1; o <= 2; o *= 2) {
              d[0] += __shfl_xor_sync(~0u, d[0], o);
              d[2] += __shfl_xor_sync(~0u, d[2], o);
            }
            if (t_ == 0) to[0] = d[0], to[8 * C::kSumPitch] = d[2];
            continue;
          }
          to[0] = d[0], to[1] = d[1];
          to += 8 * C::kSumPitch;
          to[0] = d[2], to[1] = d[3];
        }
      __syncthreads();
      for (int row = warp_; row < min(C::kTokens, p_.m); row += kWarps) {
        const RowStatistics statistics = Statistics(row, moments);
#pragma unroll
        for (int i = 0; i < C::kLaneColumns; ++i) {
          const int in_round = i * 32 + lane_, column = FirstColumn() + round * C::kRoundColumns + in_round;
          if (in_round >= C::kRoundColumns || column >= p_.n) continue;
          typename C::Sum sum = 0;
#pragma unroll
          for (int w = 0; w < kWarps; ++w)
            sum += sums[(w * C::kRoundColumns + in_round) * C::kSumPitch + row];
          const OutputColumn<typename C::T> y(p_, column);
          if (y.first)
            *y.Row(row) =
                static_cast<typename C::T>(Finish(columns[round][i], static_cast<float>(sum), statistics));
        }
      }
    }
  }

  __device__ __forceinline__ void ShareMoments(Moments* moments) {
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
      Moments row = moments_[j].Get();
      for (int o = 1; o <= 2; o *= 2) row.Merge(row.Shuffled(o));
      if (t_ == 0) moments[warp_ * C::kTokens + j * 8 + g_] = row;
    }
  }
  __device__ __forceinline__ RowStatistics Statistics(int row, const Moments* moments) const {
    if constexpr (C::kMoments) {
      if (p_.norm != NormType::kNone) {
        Moments all;
#pragma unroll
        for (int w = 0; w < kWarps; ++w) all.Merge(moments[w * C::kTokens + row]);
        if (p_.norm == NormType::kRmsNorm)
          all = {all.count, 0, all.squares + all.count * all.mean * all.mean};
        return {all.mean, InverseDeviation(all.squares, static_cast<float>(p_.k), p_.epsilon)};
      }
    }
    return p_.statistics ? p_.statistics[row] : RowStatistics{0, 1};
  }

  const Params& p_;
  char* const shared_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32, g_ = lane_ / 4, t_ = lane_ % 4;
  const uint4* weights_[C::kGroups];  // where this lane's first vector lies
  uint4 w_[C::kGroups][2][2] = {};    // of one step: [half]
  typename C::Sum sums_[C::kGroups][C::kBlocks][4] = {};
  ShiftedSums<true> moments_[C::kBlocks];
  uint4 factors_[2][2] = {};
};

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kMinBlocks) StreamKernel(const __grid_constant__ Params p) {
  __shared__ alignas(16) char shared[C::kSharedBytes];
  Block<C>(p, shared).Run();
}

}  // namespace qkvgemm::cuda::stream
