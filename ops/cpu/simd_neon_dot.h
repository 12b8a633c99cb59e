// NEON with products of int8 (the dot product extension).
#pragma once

#include "ops/cpu/simd_neon.h"
#include "ops/cpu/simd_product.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kInt8> : ProductOf<Lanes, Lanes> {
  static Lanes MulAdd(Lanes row, Lanes w, Lanes sum) {
    return {vdotq_s32(sum.v, vreinterpretq_s8_s32(w.v), vreinterpretq_s8_s32(row.v))};
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
