// NEON with products of matrices of int8 (I8MM): two rows by two columns, of eight k.
#pragma once

#include "ops/cpu/simd_neon.h"
#include "ops/cpu/simd_product.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kInt8> : ProductOf<Lanes, Lanes> {
  // Sums are [row][column].
  static Lanes MulAddMatrices(Lanes rows, Lanes columns, Lanes sums) {
    return {vmmlaq_s32(sums.v, vreinterpretq_s8_s32(rows.v), vreinterpretq_s8_s32(columns.v))};
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
