// How the CPU's kernels compute a product, for test/kernels/bound.h.
#pragma once

#include "ops/cpu/plan.h"
#include "test/kernels/bound.h"

namespace qkvgemm::support {

inline Arithmetic ArithmeticOf(const cpu::Plan& plan) {
  Arithmetic arithmetic;
  // Rows are rounded, weights are exact.
  if (plan.operand == cpu::Operand::kBFloat16) arithmetic.operand = RoundingOf(DType::kBFloat16);
  // Half a step of the last digit, where the largest value has 127 in the first.
  if (plan.digits > 1) arithmetic.fixed_point = 0.5 / 127.0 / (plan.digits == 2 ? 0x1p8 : 0x1p16);
  return arithmetic;
}

}  // namespace qkvgemm::support
