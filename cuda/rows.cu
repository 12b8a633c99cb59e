// What is computed once for each row of the input: statistics, the normalised row, its int8 form.
#include <algorithm>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/launch.h"
#include "cuda/moments.cuh"

namespace qkvgemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 8;  // elements a thread takes at a time

struct Params {
  const void* x;
  Vector gamma, beta;         // data null: absent
  RowStatistics* statistics;  // may be null
  void* norm;                 // T [m, k]; may be null
  void* target;               // [m, pitch]; null for Rows::kInput
  int64_t m, k, pitch;
  NormType type;
  float epsilon;
  Rows rows;
};

// kWarps warps share a row.
template <typename T, int kWarps, bool kAligned>
class RowKernel {
 public:
  static constexpr int kRowThreads = kWarps * 32;
  static constexpr int kRows = kThreads / kRowThreads;

  __device__ RowKernel(const Params& p)
      : p_(p), row_(blockIdx.x * int64_t{kRows} + threadIdx.x / kRowThreads) {}

  __device__ void Run() {
    const int lane = threadIdx.x % kRowThreads;
    if (p_.type != NormType::kNone) {
      const Moments moments = Reduce(Accumulate(lane));
      const float count = static_cast<float>(p_.k);
      mean_ = p_.type == NormType::kLayerNorm ? moments.mean : 0.0f;
      rstd_ = InverseDeviation(moments.squares, count, p_.epsilon);
      // Beside a large mean its own rounding is not small: what it leaves is taken off as well (T. F. Chan,
      // G. H. Golub, R. J. LeVeque, 1983).
      if (p_.type == NormType::kLayerNorm && (p_.norm != nullptr || Normalised())) {
        // So is the error of merged squares: they are taken again.
        float rest = 0, squares = 0;
        EachRaw(lane, p_.k, [&](int64_t, const float(&v)[kChunk], int valid) {
          for (int e = 0; e < valid; ++e) {
            const float d = v[e] - mean_;
            rest += d;
            squares = fmaf(d, d, squares);
          }
        });
        residual_ = Sum(rest) / count;
        squares = fmaxf(Sum(squares) - residual_ * residual_ * count, 0.0f);
        rstd_ = InverseDeviation(squares, count, p_.epsilon);
      }
    }
    if (lane == 0 && Inside() && p_.statistics && !Normalised()) p_.statistics[row_] = {mean_, rstd_};
    if (p_.norm != nullptr) {
      Each<true>(lane, p_.k, [&](int64_t i, const float(&v)[kChunk], int count) {
        for (int e = 0; e < count; ++e) Store(p_.norm, kTypeOf<T>, row_ * p_.k + i + e, v[e]);
      });
    }
    if (p_.rows == Rows::kNormalised || p_.rows == Rows::kPadded) {
      if (lane == 0 && Inside() && p_.statistics && Normalised()) p_.statistics[row_] = {0.0f, 1.0f};
      const bool normalised = Normalised();
      T* target = static_cast<T*>(p_.target) + row_ * p_.pitch;
      if (normalised) {
        // The weights have gamma and beta; not floats, whose rows are exact.
        Each<std::is_same_v<T, float>>(lane, p_.pitch, [&](int64_t i, const float(&v)[kChunk], int count) {
          StoreChunk(target + i, v, count);
        });
      } else {
        EachRaw(lane, p_.pitch,
                [&](int64_t i, const float(&v)[kChunk], int count) { StoreChunk(target + i, v, count); });
      }
    }
    if (p_.rows == Rows::kQuantised) Quantise(lane);
  }

 private:
  __device__ bool Inside() const { return row_ < p_.m; }
  __device__ bool Normalised() const { return p_.rows == Rows::kNormalised || p_.rows == Rows::kQuantised; }

  __device__ int Load(int64_t i, float (&v)[kChunk]) const {
    const T* x = static_cast<const T*>(p_.x) + row_ * p_.k + i;
    const int count = p_.k - i < kChunk ? static_cast<int>(p_.k - i) : kChunk;
    if (kAligned) {
      LoadChunk(x, v);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[e] = e < count ? static_cast<float>(x[e]) : 0.0f;
    }
    return count;
  }

  __device__ Moments Accumulate(int lane) const {
    Moments m;
    if (!Inside()) return m;
    const bool centred = p_.type == NormType::kLayerNorm;
    for (int64_t i = lane * kChunk; i < p_.k; i += kRowThreads * kChunk) {
      float v[kChunk];
      const int count = Load(i, v);
      m.Add(v, count, centred);
    }
    return m;
  }

  // Over the threads of a row; every one gets the result.
  __device__ Moments Reduce(Moments m) const {
    for (int o = 16; o > 0; o /= 2) m.Merge(m.Shuffled(o));
    // Merging is not quite symmetric: all threads take what the first has.
    if (kWarps == 1) return m.Of(0);
    __shared__ Moments parts[kThreads / 32];
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = m;
    __syncthreads();
    const Moments* const of_row = parts + threadIdx.x / kRowThreads * kWarps;
    m = of_row[0];
    for (int w = 1; w < kWarps; ++w) m.Merge(of_row[w]);
    return m;
  }

  template <typename Combine>
  __device__ float Reduce(float value, const Combine& combine) const {
    for (int o = 16; o > 0; o /= 2) value = combine(value, __shfl_xor_sync(~0u, value, o));
    if (kWarps == 1) return value;
    __shared__ float parts[kThreads / 32];
    __syncthreads();  // the parts of the reduction before have been read
    if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
    __syncthreads();
    const float* const of_row = parts + threadIdx.x / kRowThreads * kWarps;
    value = of_row[0];
    for (int w = 1; w < kWarps; ++w) value = combine(value, of_row[w]);
    return value;
  }
  __device__ float Sum(float value) const {
    return Reduce(value, [](float a, float b) { return a + b; });
  }
  __device__ float Largest(float value) const {
    return Reduce(value, [](float a, float b) { return fmaxf(a, b); });
  }

  // Calls visit(i, values, count) for chunks of the row up to `end`; values behind the row's end are 0.
  template <typename Visit>
  __device__ void EachRaw(int lane, int64_t end, const Visit& visit) const {
    if (!Inside()) return;
    for (int64_t i = lane * kChunk; i < end; i += kRowThreads * kChunk) {
      float v[kChunk] = {};
      if (i < p_.k) Load(i, v);
      visit(i, v, end - i < kChunk ? static_cast<int>(end - i) : kChunk);
    }
  }
  template <bool kScaled, typename Visit>
  __device__ void Each(int lane, int64_t end, const Visit& visit) const {
    EachRaw(lane, end, [&](int64_t i, float(&v)[kChunk], int count) {
      if (p_.type != NormType::kNone) {
#pragma unroll
        for (int e = 0; e < kChunk; ++e) {
          if (i + e >= p_.k) continue;
          v[e] = (v[e] - mean_ - residual_) * rstd_;
          if (kScaled && p_.gamma.data) v[e] *= p_.gamma.At(i + e);
          if (kScaled && p_.beta.data) v[e] += p_.beta.At(i + e);
        }
      }
      visit(i, v, count);
    });
  }

  // As a product reads them. A row's pitch is a multiple of kChunk: float rows come whole.
  __device__ void StoreChunk(T* target, const float (&v)[kChunk], int count) const {
    if constexpr (std::is_same_v<T, float>) {
      auto* const halves = reinterpret_cast<float4*>(target);
#pragma unroll
      for (int i = 0; i < 2; ++i)
        halves[i] = {PackTf32(v[4 * i]), PackTf32(v[4 * i + 1]), PackTf32(v[4 * i + 2]),
                     PackTf32(v[4 * i + 3])};
    } else if (count == kChunk) {
      *reinterpret_cast<uint4*>(target) = PackChunk<T>(v);
    } else {
      for (int e = 0; e < count; ++e) target[e] = static_cast<T>(v[e]);
    }
  }

  __device__ void Quantise(int lane) const {
    float largest = 0;
    Each<true>(lane, p_.k, [&](int64_t, const float(&v)[kChunk], int count) {
      for (int e = 0; e < count; ++e) largest = isfinite(v[e]) ? fmaxf(largest, fabsf(v[e])) : INFINITY;
    });
    largest = Largest(largest);
    const bool finite = largest < INFINITY;
    const float inverse = largest > 0.0f && finite ? 127.0f / largest : 0.0f;
    const float scale = inverse < INFINITY ? largest / 127.0f : 0.0f;
    if (lane == 0 && Inside()) p_.statistics[row_] = {0.0f, finite ? scale : NAN};
    int8_t* target = static_cast<int8_t*>(p_.target) + row_ * p_.pitch;
    Each<true>(lane, p_.pitch, [&](int64_t i, const float(&v)[kChunk], int count) {
      union {
        int8_t q[kChunk];
        uint2 word;
      };
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        q[e] = scale > 0.0f && finite ? static_cast<int8_t>(__float2int_rn(v[e] * inverse)) : int8_t{0};
      if (count == kChunk) *reinterpret_cast<uint2*>(target + i) = word;
    });
  }

  const Params& p_;
  const int64_t row_;
  float mean_ = 0, residual_ = 0, rstd_ = 1;
};

template <typename T, int kWarps, bool kAligned>
__global__ void __launch_bounds__(kThreads) RowsKernel(const __grid_constant__ Params p) {
  // The product may fetch weights at once. Its own wait ends when this kernel has, hence after this one's.
  LetNextStart();
  WaitForPrevious();
  RowKernel<T, kWarps, kAligned>(p).Run();
}

template <typename T, int kWarps>
cudaError_t LaunchRows(const Params& p, bool aligned, cudaStream_t stream) {
  constexpr int kRows = kThreads / (kWarps * 32);
  LaunchShape shape{.grid = static_cast<unsigned>(CeilDiv(p.m, kRows)), .block = kThreads};
  shape.dependent = true;
  return aligned ? Launch(RowsKernel<T, kWarps, true>, shape, stream, p)
                 : Launch(RowsKernel<T, kWarps, false>, shape, stream, p);
}

template <typename T>
cudaError_t LaunchType(const Params& p, bool aligned, cudaStream_t stream) {
  // Few rows: latency counts, and the device is empty. With more than one or two chunks for each thread the
  // row's loads wait for one another, with less the warps do.
  if (p.m > 1024) return LaunchRows<T, 1>(p, aligned, stream);
  constexpr int64_t kRowOfWarp = 2 * 32 * kChunk;
  if (p.k > 4 * kRowOfWarp) return LaunchRows<T, 8>(p, aligned, stream);
  if (p.k > 2 * kRowOfWarp) return LaunchRows<T, 4>(p, aligned, stream);
  return p.k > kRowOfWarp ? LaunchRows<T, 2>(p, aligned, stream) : LaunchRows<T, 1>(p, aligned, stream);
}

}  // namespace

cudaError_t PrepareRows(const Problem& p, const Operands& o, Rows rows, const Product& product,
                        cudaStream_t stream) {
  const Params params{o.input,
                      {o.gamma, p.gamma_type},
                      {o.beta, p.beta_type},
                      product.statistics,
                      o.norm,
                      product.rows,
                      p.m,
                      p.k,
                      product.pitch,
                      p.norm,
                      p.epsilon,
                      rows};
  const bool aligned = p.k % kChunk == 0 && reinterpret_cast<uintptr_t>(o.input) % 16 == 0;
  switch (p.t) {
    case DType::kFloat:
      return LaunchType<float>(params, aligned, stream);
    case DType::kFloat16:
      return LaunchType<__half>(params, aligned, stream);
    case DType::kBFloat16:
      return LaunchType<__nv_bfloat16>(params, aligned, stream);
    case DType::kInt8:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace qkvgemm::cuda
