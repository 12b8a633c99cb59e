// How the CPU's kernels compute a product, for test/kernels/bound.h.
#pragma once

#include "ops/cpu/plan.h"
#include "test/kernels/bound.h"

namespace qkvgemm::support {

inline Arithmetic ArithmeticOf(const cpu::Plan& plan) {
  Arithmetic arithmetic;
  // Rows are rounded; bfloat16 and int8 weights are exact in bfloat16.
  if (plan.operand == cpu::Operand::kBFloat16) arithmetic.operand = RoundingOf(DType::kBFloat16);
  if (plan.digits == 3) arithmetic.fixed_point = 0.5 / (127.0 * 65536.0);
  return arithmetic;
}

}  // namespace qkvgemm::support
