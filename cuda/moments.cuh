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

// 1 / sqrt(variance + epsilon); 0 where a row has neither.
__device__ __forceinline__ float InverseDeviation(float squares, float count, float epsilon) {
  const float spread = squares / count + epsilon;
  return spread == 0.0f ? 0.0f : 1.0f / sqrtf(spread);
}

}  // namespace qkvgemm::cuda
