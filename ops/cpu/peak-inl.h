// The processor's own limit: products of registers, as many at once as a register tile has. Part of the body
// in qkv_gemm-inl.h.
#pragma once

#include <cstdint>

#include "ops/cpu/micro_kernel-inl.h"

namespace qkvgemm::cpu {
namespace {

template <Operand kOperand>
int64_t SpinAs(int64_t steps, uint32_t* sink) {
  using P = Product<kOperand>;
  constexpr int kRows = kTile.mr;
  typename P::Sum sums[kRows][kVectors];
  for (auto& row : sums)
    for (auto& sum : row) sum = P::Sum::Zero();
  const typename P::Factor x = P::Row(sink);
  typename P::Factor w[kVectors];
  for (int v = 0; v < kVectors; ++v) w[v] = P::Row(sink + v);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = P::MulAdd(x, w[v], sums[r][v]);
  }
  uint32_t lanes[kLanes];
  for (auto& row : sums)
    for (auto& sum : row) {
      P::StoreSum(sum, lanes);
      for (uint32_t lane : lanes) *sink ^= lane;
    }
  return steps * kRows * kTile.nr * DepthOf(kOperand);
}

int64_t Spin(Operand operand, int64_t steps, uint32_t* sink) {
  constexpr Dot kDot = DotOf(kThisIsa);
  if constexpr (kDot.bfloat16 && kDot.column_run == 1)
    if (operand == Operand::kBFloat16) return SpinAs<Operand::kBFloat16>(steps, sink);
  if constexpr (kDot.int8 && kDot.column_run == 1)
    if (operand == Operand::kInt8) return SpinAs<Operand::kInt8>(steps, sink);
  return SpinAs<Operand::kFloat>(steps, sink);
}

}  // namespace
}  // namespace qkvgemm::cpu
