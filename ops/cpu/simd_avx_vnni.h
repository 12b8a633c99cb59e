// AVX2 with products of int8 (AVX-VNNI).
#pragma once

#include "ops/cpu/simd_avx2.h"
#include "ops/cpu/simd_product.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kInt8> : ProductOf<Lanes, Lanes> {
  // The first factor is unsigned; sums wrap around, which int32 that are right in the end may.
  static Lanes MulAdd(Lanes row, Lanes w, Lanes sum) {
    return _mm256_dpbusd_avx_epi32(__m256i(sum), __m256i(w), __m256i(row));
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
