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

}  // namespace qkvgemm::cuda
