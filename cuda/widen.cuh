// int8 weights as halves in registers.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace qkvgemm::cuda {

// Bytes q + 128 as pairs of T: byte pairs (0, 1) and (2, 3) of a word.
template <typename T>
__device__ __forceinline__ void Widen(uint32_t word, uint32_t& low, uint32_t& high) {
  if constexpr (std::is_same_v<T, __half>) {
    // 0x6400 + u is 1024 + u.
    const __half2 offset = __half2half2(__ushort_as_half(0x6480));  // 1152
    uint32_t a = __byte_perm(word, 0x64646464, 0x4140), b = __byte_perm(word, 0x64646464, 0x4342);
    const __half2 x = __hsub2(*reinterpret_cast<__half2*>(&a), offset);
    const __half2 y = __hsub2(*reinterpret_cast<__half2*>(&b), offset);
    low = *reinterpret_cast<const uint32_t*>(&x);
    high = *reinterpret_cast<const uint32_t*>(&y);
  } else {
    // 0x4300 + the low seven bits is 128 + these; the highest bit decides between 128 and 256 to subtract.
    const uint32_t pair[2] = {__byte_perm(word, 0, 0x4140), __byte_perm(word, 0, 0x4342)};
    uint32_t out[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      uint32_t a = (pair[i] & 0x007f007fu) | 0x43004300u, b = (pair[i] & 0x00800080u) ^ 0x43804380u;
      const __nv_bfloat162 d =
          __hsub2(*reinterpret_cast<__nv_bfloat162*>(&a), *reinterpret_cast<__nv_bfloat162*>(&b));
      out[i] = *reinterpret_cast<const uint32_t*>(&d);
    }
    low = out[0], high = out[1];
  }
}

// Pairs of T, multiplied.
template <typename T>
__device__ __forceinline__ uint32_t Multiply2(uint32_t a, uint32_t b) {
  using Pair = std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162>;
  const Pair product = __hmul2(*reinterpret_cast<const Pair*>(&a), *reinterpret_cast<const Pair*>(&b));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// What two steps of 16 k take from the 16 bytes that a lane has for them (layout.h, kInt8), as A fragments.
template <typename T>
__device__ __forceinline__ void WidenSteps(const uint32_t (&w)[4], const uint32_t (&factors)[4],
                                           uint32_t (&first)[4], uint32_t (&second)[4]) {
  const auto widen = [](uint32_t near, uint32_t far, uint32_t near_factor, uint32_t far_factor,
                        uint32_t(&a)[4]) __attribute__((always_inline)) {
    Widen<T>(near, a[0], a[1]);
    Widen<T>(far, a[2], a[3]);
    a[0] = Multiply2<T>(a[0], near_factor), a[1] = Multiply2<T>(a[1], near_factor);
    a[2] = Multiply2<T>(a[2], far_factor), a[3] = Multiply2<T>(a[3], far_factor);
  };
  widen(w[0], w[1], factors[0], factors[1], first);
  widen(w[2], w[3], factors[2], factors[3], second);
}

}  // namespace qkvgemm::cuda
