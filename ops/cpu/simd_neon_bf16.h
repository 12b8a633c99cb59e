// NEON with products of matrices of int8 and of bfloat16 (BF16): two rows by two columns, of four k.
#pragma once

#include "ops/cpu/simd_neon_i8mm.h"

namespace qkvgemm::cpu {
namespace {

template <>
struct Product<Operand::kBFloat16> : ProductOf<Lanes, Vec> {
  // Sums are [row][column]. A pair of products is added up and then goes to the sum; both additions round to
  // odd, and operands and results below 2^-126 are zeros (Arm Architecture Reference Manual, BFMMLA; where a
  // process sets FPCR.EBF, which Linux does not, a pair and its sum round once, to nearest).
  static Vec MulAddMatrices(Lanes rows, Lanes columns, Vec sums) {
    return {vbfmmlaq_f32(sums.v, vreinterpretq_bf16_s32(rows.v), vreinterpretq_bf16_s32(columns.v))};
  }
};

template <>
struct Columns<2> {
  static void Load(const void* p, Lanes (&lanes)[2]) {
    const auto* at = static_cast<const char*>(p);
    const Lanes first = Lanes::Load(at), second = Lanes::Load(at + sizeof(Lanes));
    lanes[0] = {vuzp1q_s32(first.v, second.v)};
    lanes[1] = {vuzp2q_s32(first.v, second.v)};
  }
};

}  // namespace
}  // namespace qkvgemm::cpu
