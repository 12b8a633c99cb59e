// AVX-512 with products of int8 (VNNI).
#pragma once

#include "ops/cpu/simd_avx512.h"
#include "ops/cpu/simd_product.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kInt8> : ProductOf<Lanes, Lanes> {
  // The first factor is unsigned; sums wrap around, which int32 that are right in the end may.
  static Lanes MulAdd(Lanes row, Lanes w, Lanes sum) {
    return _mm512_dpbusd_epi32(__m512i(sum), __m512i(w), __m512i(row));
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
