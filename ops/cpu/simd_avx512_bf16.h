// AVX-512 with products of bfloat16 and of int8.
#pragma once

#include "ops/cpu/simd_avx512_vnni.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kBFloat16> : ProductOf<Lanes, Vec> {
  static Vec MulAdd(Lanes row, Lanes w, Vec sum) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)__m512i(row), (__m512bh)__m512i(w))};
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
