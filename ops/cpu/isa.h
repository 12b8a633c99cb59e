// What the instruction sets have, as constants for plans and kernels.
#pragma once

#include "ops/cpu/qkv_gemm_cpu.h"

namespace qkvgemm::cpu {

// What rows and W are multiplied as. A lane of 32 bits holds DepthOf consecutive k.
enum class Operand : uint8_t {
  kFloat,
  kBFloat16,  // rows rounded to bfloat16, exact products, float sums
  kInt8,      // rows as one or more digits of int8, exact products and int32 sums
};

constexpr int DepthOf(Operand operand) {
  return operand == Operand::kFloat ? 1 : operand == Operand::kBFloat16 ? 2 : 4;
}

// Operands that an instruction set multiplies beside float.
struct Dot {
  bool bfloat16;
  bool int8;
  bool unsigned_weights;  // int8 products are of signed rows and weights stored as weight + 128
  // Products of matrices in registers take so many lanes of a row at once, which lie together, and so many
  // of a column of W. 1: products are of vectors.
  int row_run = 1;
  int column_run = 1;
};

constexpr Dot DotOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
    case Isa::kAvx2:
    case Isa::kAvx512:
    case Isa::kNeon:
      break;
    case Isa::kAvxVnni:
    case Isa::kAvx512Vnni:
      return {.bfloat16 = false, .int8 = true, .unsigned_weights = true};
    case Isa::kAvx512Bf16:
      return {.bfloat16 = true, .int8 = true, .unsigned_weights = true};
    case Isa::kNeonDot:
      return {.bfloat16 = false, .int8 = true, .unsigned_weights = false};
    case Isa::kNeonI8mm:
      return {.bfloat16 = false, .int8 = true, .unsigned_weights = false, .row_run = 2, .column_run = 2};
    case Isa::kNeonBf16:
      return {.bfloat16 = true, .int8 = true, .unsigned_weights = false, .row_run = 2, .column_run = 2};
    case Isa::kAmx:
      return {.bfloat16 = true, .int8 = true, .unsigned_weights = true, .row_run = 16};
  }
  return {.bfloat16 = false, .int8 = false, .unsigned_weights = false};
}

}  // namespace qkvgemm::cpu
