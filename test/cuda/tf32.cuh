// The packing of floats of which matrix instructions read the upper 19 bits: all numbers, on the device.
#pragma once

#include <cstdint>
#include <cstdio>

#include "cuda/elements.cuh"
#include "test/cuda/device.cuh"

namespace qkvgemm::support {

struct CheckPackedFloat {
  unsigned long long* wrong;
  unsigned* first;  // bits of a value that is packed wrongly

  __device__ void operator()(int64_t i) const {
    const auto bits = static_cast<uint32_t>(i);
    const float v = __uint_as_float(bits);
    const uint32_t packed = __float_as_uint(cuda::PackTf32(v));
    if (Right(v, packed, __uint_as_float(packed & 0xffffe000u), cuda::UnpackTf32(packed))) return;
    if (atomicAdd(wrong, 1ull) == 0) *first = bits;
  }
  static __device__ bool Right(float v, uint32_t packed, float read, float unpacked) {
    if (isnan(v)) return isnan(__uint_as_float(packed)) && isnan(read) && isnan(unpacked);
    if (isinf(v)) return read == v && unpacked == v;
    constexpr float kLargest = 0x1.ffcp127f;
    if (fabsf(v) >= 0x1.ffep127f) return read == copysignf(kLargest, v) && unpacked == read;
    if (__float_as_uint(unpacked) != __float_as_uint(v)) return false;
    // Half of the last of 11 digits; where numbers are subnormal, of the smallest step.
    int exponent = 0;
    if (v != 0) frexpf(v, &exponent);
    const double half = ldexp(1.0, max(exponent, -125) - 12);
    return fabs(static_cast<double>(read) - v) <= half;
  }
};

// False, with what was found, if a float is packed otherwise than to the nearest.
inline bool PacksFloats() {
  DeviceArray<unsigned long long> counts;
  DeviceArray<unsigned> firsts;
  unsigned long long* const wrong = counts.Get(1);
  unsigned* const first = firsts.Get(1);
  Must(cudaMemset(wrong, 0, sizeof *wrong), "cudaMemset");
  ForEach(int64_t{1} << 32, nullptr, CheckPackedFloat{wrong, first});
  unsigned long long count = 0;
  unsigned bits = 0;
  Must(cudaMemcpy(&count, wrong, sizeof count, cudaMemcpyDeviceToHost), "cudaMemcpy");
  Must(cudaMemcpy(&bits, first, sizeof bits, cudaMemcpyDeviceToHost), "cudaMemcpy");
  if (count > 0) std::printf("FAIL %llu floats are packed wrongly, one has the bits %08x\n", count, bits);
  return count == 0;
}

}  // namespace qkvgemm::support
