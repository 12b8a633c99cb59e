// Mean and sum of squared deviations of a set of values, merged as in T. F. Chan, G. H. Golub, R. J. LeVeque:
// Algorithms for computing the sample variance (1983). Never E[x^2] - E[x]^2: that loses every digit where
// the mean is large.
#pragma once

#include <cuda_runtime.h>

namespace qkvgemm::cuda {

struct Moments {
  float count = 0, mean = 0, squares = 0;

  __device__ __forceinline__ void Merge(const Moments& other) {
    const float all = count + other.count;
    const float share = all > 0.0f ? __fdividef(other.count, all) : 0.0f;
    const float d = other.mean - mean;
    mean = fmaf(d, share, mean);
    squares += other.squares + d * d * (count * share);
    count = all;
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
