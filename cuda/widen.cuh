// int8 weights as halves in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace qkvgemm::cuda {

__device__ __forceinline__ uint32_t Bits(const __half2& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t Bits(const __nv_bfloat162& pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// The byte pairs (0, 1) and (2, 3) of a word, q + 128, as pairs of T: q times the factors, rounded; for
// bfloat16 times 2^-kBFloat16WideningExponent, which the columns' scales make up for.
template <typename T>
__device__ __forceinline__ void Widen(uint32_t word, uint32_t factors, uint32_t& low, uint32_t& high) {
  if constexpr (std::is_same_v<T, __half>) {
    const auto f = *reinterpret_cast<const __half2*>(&factors);
    const auto widen = [&](uint32_t bytes) {                          // 0x6400 + u is 1024 + u
      const __half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1152
      return Bits(__hmul2(__hsub2(*reinterpret_cast<const __half2*>(&bytes), offset), f));
    };
    low = widen(__byte_perm(word, 0x64646464, 0x4140));
    high = widen(__byte_perm(word, 0x64646464, 0x4342));
  } else {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
    // A byte alone is a subnormal number, 2^-133 times as much, and f * 2^-126 is exact: one rounding.
    const auto f = *reinterpret_cast<const __nv_bfloat162*>(&factors);
    const __nv_bfloat162 minus_128 = __bfloat162bfloat162(__ushort_as_bfloat16(0x8080));
    const __nv_bfloat162 shift = __hmul2(f, minus_128);
    const auto widen = [&](uint32_t bytes) {
      return Bits(__hfma2(*reinterpret_cast<const __nv_bfloat162*>(&bytes), f, shift));
    };
    low = widen(__byte_perm(word, 0, 0x4140));
    high = widen(__byte_perm(word, 0, 0x4342));
#else
    low = high = 0;  // no plan has bfloat16 there
    __trap();
#endif
  }
}

// What two steps of 16 k take from the 16 bytes that a lane has for them (layout.h, kInt8), as A fragments.
template <typename T>
__device__ __forceinline__ void WidenSteps(const uint32_t (&w)[4], const uint32_t (&factors)[4],
                                           uint32_t (&first)[4], uint32_t (&second)[4]) {
  Widen<T>(w[0], factors[0], first[0], first[1]);
  Widen<T>(w[1], factors[1], first[2], first[3]);
  Widen<T>(w[2], factors[2], second[0], second[1]);
  Widen<T>(w[3], factors[3], second[2], second[3]);
}

}  // namespace qkvgemm::cuda
