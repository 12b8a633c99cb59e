// What is computed once for each row of the input: statistics, the normalised row, its int8 form.
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

// Of a row's values: x, x - mean, (x - mean) * rstd, y.
enum class Form { kRaw, kCentred, kNormalised, kScaled };

// kWarps warps share a row. A thread keeps its first kHeld chunks in registers, in whichever form they are
// wanted next; those of longer rows are read and computed again each time.
template <typename T, int kWarps, bool kAligned>
class RowKernel {
 public:
  static constexpr int kRowThreads = kWarps * 32;
  static constexpr int kRows = kThreads / kRowThreads;
  static constexpr int kStride = kRowThreads * kChunk;
  static constexpr int kHeld = 2;

  __device__ RowKernel(const Params& p)
      : p_(p),
        row_(blockIdx.x * int64_t{kRows} + threadIdx.x / kRowThreads),
        lane_(threadIdx.x % kRowThreads),
        end_(row_ < p.m ? p.k : 0) {}

  __device__ void Run() {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (At(j) < end_) Load(At(j), held_[j]);
    if (p_.rows == Rows::kPadded) StoreRows();
    if (p_.type != NormType::kNone) TakeStatistics();
    const bool normalised = p_.rows == Rows::kNormalised || p_.rows == Rows::kQuantised;
    if (lane_ == 0 && row_ < p_.m && p_.statistics != nullptr && p_.rows != Rows::kQuantised)
      p_.statistics[row_] = normalised ? RowStatistics{0.0f, 1.0f} : RowStatistics{mean_ + residual_, rstd_};
    if (!normalised && p_.norm == nullptr) return;
    // The weights have gamma and beta; not floats, whose rows are exact.
    const bool halves = !std::is_same_v<T, float>;
    if (halves && p_.rows == Rows::kNormalised) {
      Become(Form::kNormalised);
      StoreRows();
      if (p_.norm == nullptr) return;
    }
    Become(Form::kScaled);
    if (!halves && p_.rows == Rows::kNormalised) StoreRows();
    if (p_.norm != nullptr) StoreNorm();
    if (p_.rows == Rows::kQuantised) Quantise();
  }

 private:
  __device__ int64_t At(int64_t j) const { return lane_ * kChunk + j * kStride; }
  // How many elements of a chunk are inside the row.
  __device__ int Count(int64_t i) const {
    return kAligned || p_.k - i >= kChunk ? kChunk : static_cast<int>(p_.k - i);
  }

  __device__ void Load(int64_t i, float (&v)[kChunk]) const {
    const T* x = static_cast<const T*>(p_.x) + row_ * p_.k + i;
    if (kAligned) {
      LoadChunk(x, v);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[e] = e < Count(i) ? static_cast<float>(x[e]) : 0.0f;
    }
  }

  // Those behind the row's end stay 0.
  __device__ void Transform(Form from, Form to, int64_t i, float (&v)[kChunk]) const {
    if (p_.type == NormType::kNone) return;
    if (from < Form::kCentred && to >= Form::kCentred) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        if (e < Count(i)) v[e] -= mean_;
    }
    if (from < Form::kNormalised && to >= Form::kNormalised) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e)
        if (e < Count(i)) v[e] = (v[e] - residual_) * rstd_;
    }
    if (from < Form::kScaled && to == Form::kScaled) Scale(i, v);
  }
  __device__ void Scale(int64_t i, float (&v)[kChunk]) const {
    float gamma[kChunk], beta[kChunk] = {};
    if (p_.beta.data != nullptr) LoadVector(p_.beta, i, beta);
    if (p_.gamma.data != nullptr) {
      LoadVector(p_.gamma, i, gamma);
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[e] = fmaf(v[e], gamma[e], beta[e]);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[e] += beta[e];
    }
  }
  // 0 behind the row's end.
  __device__ void LoadVector(const Vector& vector, int64_t i, float (&v)[kChunk]) const {
    if (kAligned) {
      vector.Chunk(i, v);
    } else {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) v[e] = e < Count(i) ? vector.At(i + e) : 0.0f;
    }
  }

  __device__ void Become(Form form) {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (At(j) < end_) Transform(form_, form, At(j), held_[j]);
    form_ = form;
  }

  // Calls visit(i, values) for this thread's chunks of the row.
  template <typename Visit>
  __device__ void Each(const Visit& visit) const {
#pragma unroll
    for (int j = 0; j < kHeld; ++j)
      if (At(j) < end_) visit(At(j), held_[j]);
#pragma unroll 1
    for (int64_t i = At(kHeld); i < end_; i += kStride) {
      float v[kChunk];
      Load(i, v);
      Transform(Form::kRaw, form_, i, v);
      visit(i, v);
    }
  }

  // Over the threads of a row; every one gets the results.
  template <int kCount, typename V, typename Combine>
  __device__ void Reduce(V (&values)[kCount], const Combine& combine) const {
#pragma unroll
    for (V& value : values)
      for (int o = 16; o > 0; o /= 2) value = combine(value, __shfl_xor_sync(~0u, value, o));
    if (kWarps == 1) return;
    __shared__ V parts[kCount][kThreads / 32];
    __syncthreads();  // the parts of the reduction before have been read
    if (threadIdx.x % 32 == 0) {
#pragma unroll
      for (int c = 0; c < kCount; ++c) parts[c][threadIdx.x / 32] = values[c];
    }
    __syncthreads();
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      const V* const of_row = parts[c] + threadIdx.x / kRowThreads * kWarps;
      values[c] = of_row[0];
      for (int w = 1; w < kWarps; ++w) values[c] = combine(values[c], of_row[w]);
    }
  }
  template <int kCount>
  __device__ void Sum(float (&values)[kCount]) const {
    Reduce(values, [](float a, float b) { return a + b; });
  }

  // The corrected two-pass algorithm: beside a large mean its own rounding is not small, and what it leaves
  // is taken off as well (T. F. Chan, G. H. Golub, R. J. LeVeque, 1983).
  __device__ void TakeStatistics() {
    const float count = static_cast<float>(p_.k), share = 1.0f / count;
    if (p_.type == NormType::kLayerNorm) {
      float mean[1] = {};
      Each([&](int64_t, const float(&v)[kChunk]) {
        float part[2] = {};  // no sum of large values, which could overflow
#pragma unroll
        for (int e = 0; e < kChunk; ++e) part[e % 2] = fmaf(v[e], share, part[e % 2]);
        mean[0] += part[0] + part[1];
      });
      Sum(mean);
      mean_ = mean[0];
    }
    Become(Form::kCentred);
    float rest[2] = {};  // sums of what is left, and of its squares
    Each([&](int64_t, const float(&v)[kChunk]) {
      float sum[2] = {}, squares[2] = {};
#pragma unroll
      for (int e = 0; e < kChunk; ++e) {
        sum[e % 2] += v[e];
        squares[e % 2] = fmaf(v[e], v[e], squares[e % 2]);
      }
      rest[0] += sum[0] + sum[1];
      rest[1] += squares[0] + squares[1];
    });
    Sum(rest);
    if (p_.type == NormType::kLayerNorm) residual_ = rest[0] * share;
    const float squares = rest[1] - residual_ * residual_ * count;
    rstd_ = InverseDeviation(squares < 0.0f ? 0.0f : squares, count, p_.epsilon);  // NaN stays
  }

  // As a product reads them: a row's pitch is a multiple of kChunk.
  __device__ void StoreRows() const {
    T* const target = static_cast<T*>(p_.target) + row_ * p_.pitch;
    Each([&](int64_t i, const float(&v)[kChunk]) {
      if constexpr (std::is_same_v<T, float>) {
        float packed[kChunk];
#pragma unroll
        for (int e = 0; e < kChunk; ++e) packed[e] = PackTf32(v[e]);
        StoreChunk(target + i, packed);
      } else {
        StoreChunk(target + i, v);
      }
    });
  }

  __device__ void StoreNorm() const {
    T* const norm = static_cast<T*>(p_.norm) + row_ * p_.k;
    Each([&](int64_t i, const float(&v)[kChunk]) {
      if (kAligned) {
        StoreChunk(norm + i, v);
      } else {
#pragma unroll
        for (int e = 0; e < kChunk; ++e)
          if (e < Count(i)) norm[i + e] = static_cast<T>(v[e]);
      }
    });
  }

  __device__ void Quantise() const {
    // Of values without their sign, which are in the order of their bits, infinities and NaN behind the
    // others.
    uint32_t bits[1] = {};
    Each([&](int64_t, const float(&v)[kChunk]) {
#pragma unroll
      for (int e = 0; e < kChunk; ++e) bits[0] = max(bits[0], __float_as_uint(v[e]) & 0x7fffffffu);
    });
    Reduce(bits, [](uint32_t a, uint32_t b) { return max(a, b); });
    const float largest = __uint_as_float(bits[0]);
    const bool finite = largest < INFINITY;
    float inverse = largest > 0.0f && finite ? 127.0f / largest : 0.0f;
    const float scale = inverse < INFINITY ? largest / 127.0f : 0.0f;
    if (!(scale > 0.0f)) inverse = 0.0f;
    if (lane_ == 0 && row_ < p_.m) p_.statistics[row_] = {0.0f, finite ? scale : NAN};
    int8_t* const target = static_cast<int8_t*>(p_.target) + row_ * p_.pitch;
    Each([&](int64_t i, const float(&v)[kChunk]) {
      // 1.5 * 2^23 + q has the bits of q in its lowest byte, and the addition rounds to the nearest.
      uint32_t q[kChunk];
#pragma unroll
      for (int e = 0; e < kChunk; ++e) q[e] = __float_as_uint(__fadd_rn(__fmul_rn(v[e], inverse), 0x1.8p23f));
      const auto word = [&](int e) {
        return __byte_perm(__byte_perm(q[e], q[e + 1], 0x0040), __byte_perm(q[e + 2], q[e + 3], 0x0040),
                           0x5410);
      };
      *reinterpret_cast<uint2*>(target + i) = {word(0), word(4)};
    });
    // A pitch is a multiple of 16.
    const int64_t end = RoundUp(p_.k, kChunk);
    if (lane_ == 0 && row_ < p_.m && end < p_.pitch) *reinterpret_cast<uint2*>(target + end) = {0, 0};
  }

  const Params& p_;
  const int64_t row_;
  const int lane_;
  const int64_t end_;  // of the row; 0 where there is none
  float held_[kHeld][kChunk];
  Form form_ = Form::kRaw;
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

// Two chunks for each thread, or as many as eight warps take of a longer row.
template <typename T>
cudaError_t LaunchType(const Params& p, bool aligned, cudaStream_t stream) {
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
  const bool aligned =
      p.k % kChunk == 0 && Aligned(o.input) && Aligned(o.gamma) && Aligned(o.beta) && Aligned(o.norm);
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
