// Mean and sum of squared deviations of a set of values, merged as in T. F. Chan, G. H. Golub, R. J. LeVeque: Algorithms
// for computing the sample variance (1983). Never E[x^2] - E[x]^2: that loses every digit where the mean is large.
#pragma once

#include <cuda_runtime.h>

namespace qkvgemm::cuda {

struct Moments {
  float count = 0, mean = 0, squares = 0;

  // Adds the first `count_added` of N values, the others being 0. Not centred: squares are those of the values.
  template <int N>
  __device__ __forceinline__ void Add(const float (&v)[N], int count_added, bool centred) {
    Moments other;
    other.count = static_cast<float>(count_added);
    if (centred) {
      float sum = 0;
#pragma unroll
      for (int i = 0; i < N; ++i) sum += v[i];
      other.mean = sum / other.count;
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float d = v[i] - other.mean;
      if (i < count_added) other.squares = fmaf(d, d, other.squares);
    }
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
