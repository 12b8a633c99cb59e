// Mean and sum of squared deviations of a set of values, merged as in T. F. Chan, G. H. Golub, R. J. LeVeque:
// Algorithms for computing the sample variance (1983). Never E[x^2] - E[x]^2: that loses every digit where
// the mean is large.
#pragma once

#include <cuda_runtime.h>

namespace qkvgemm::cuda {

struct Moments {
  float count = 0, mean = 0, squares = 0;

  // Adds the first `count_added` of N values, the others being 0. Not centred: squares are those of the
  // values. Four sums at a time, because few threads do this and each waits for its own results.
  template <int N>
  __device__ __forceinline__ void Add(const float (&v)[N], int count_added, bool centred) {
    static_assert(N % 4 == 0);
    Moments other;
    other.count = static_cast<float>(count_added);
    if (centred) {
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i % 4] += v[i];
      other.mean = ((sum[0] + sum[1]) + (sum[2] + sum[3])) / other.count;
    }
    float squares_of[4] = {};
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = i < count_added ? v[i] - other.mean : 0.0f;
      squares_of[i % 4] = fmaf(d, d, squares_of[i % 4]);
    }
    other.squares = (squares_of[0] + squares_of[1]) + (squares_of[2] + squares_of[3]);
    Merge(other);
  }

  __device__ __forceinline__ void Merge(const Moments& other) {
    const float all = count + other.count;
    const float share = all > 0.0f ? __fdividef(other.count, all) : 0.0f;
    const float d = other.mean - mean;
    mean = fmaf(d, share, mean);
    squares += other.squares + d * d * (count * share);
    count = all;
  }

  __device__ __forceinline__ Moments Of(int lane) const {
    return {__shfl_sync(~0u, count, lane), __shfl_sync(~0u, mean, lane), __shfl_sync(~0u, squares, lane)};
  }
  __device__ __forceinline__ Moments Shuffled(int lanes) const {
    return {__shfl_xor_sync(~0u, count, lanes), __shfl_xor_sync(~0u, mean, lanes),
            __shfl_xor_sync(~0u, squares, lanes)};
  }
};

// The same by sums about a shift, without a division for each addition. The shift is the mean of some of the
// values, n of N, so that its squared distance from the mean of all is at most N / n times the variance: what
// the subtraction in Get() cancels is bounded by that, whatever the values. Not centred: the shift stays 0,
// and squares are those of the values.
template <bool kCentred>
struct ShiftedSums {
  float shift = 0, count = 0;
  float sum[2] = {}, squares[2] = {};  // two of each, because an addition waits for the one before

  // Before the first addition. The values may be fewer than there are places: the others are 0.
  template <int N>
  __device__ __forceinline__ void Start(const float (&v)[N], int valid) {
    if (!kCentred || valid == 0) return;
    float all = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) all += v[i];
    shift = all / static_cast<float>(valid);
  }
  template <int N>
  __device__ __forceinline__ void Add(const float (&v)[N]) {
    AddIf(v, N, [](int) { return true; });
  }
  // The `valid` values for which there(i) is true.
  template <int N, typename There>
  __device__ __forceinline__ void AddIf(const float (&v)[N], int valid, const There& there) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = there(i) ? v[i] - shift : 0.0f;
      if (kCentred) sum[i % 2] += d;
      squares[i % 2] = fmaf(d, d, squares[i % 2]);
    }
    count += static_cast<float>(valid);
  }

  __device__ __forceinline__ Moments Get() const {
    if (count == 0) return {};
    const float all = sum[0] + sum[1], off = all / count;
    const float rest = (squares[0] + squares[1]) - all * off;
    return {count, shift + off, rest < 0.0f ? 0.0f : rest};  // NaN stays
  }
};

// 1 / sqrt(variance + epsilon); 0 where a row has neither.
__device__ __forceinline__ float InverseDeviation(float squares, float count, float epsilon) {
  const float spread = squares / count + epsilon;
  return spread == 0.0f ? 0.0f : 1.0f / sqrtf(spread);
}

}  // namespace qkvgemm::cuda
