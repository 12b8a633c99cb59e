// Products of matrices in vector registers (Arm's SMMLA and BFMMLA): two rows by two columns, of two lanes of
// k. Part of qkv_gemm_neon_i8mm.cc and qkv_gemm_neon_bf16.cc, around the body in qkv_gemm-inl.h.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "ops/cpu/multiply-inl.h"
#include "ops/cpu/peak-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr int kRowRun = DotOf(kThisIsa).row_run;  // lanes of k in one product
constexpr int kSide = 2;                          // rows, and columns, of one product
constexpr int kColumnPairs = kTile.nr / kSide;
static_assert(kRowRun * kSide == kLanes && kRowRun == kColumnRun);

// A row of the sums of four columns.
template <int kRow>
Lanes RowOf(Lanes left, Lanes right) {
  const int64x2_t l = vreinterpretq_s64_s32(left.v), r = vreinterpretq_s64_s32(right.v);
  return {vreinterpretq_s32_s64(kRow == 0 ? vzip1q_s64(l, r) : vzip2q_s64(l, r))};
}
template <int kRow>
Vec RowOf(Vec left, Vec right) {
  return RowOf<kRow>(Lanes::OfFloat(left), Lanes::OfFloat(right)).AsFloat();
}

// A row's lanes in both halves.
Lanes Twice(const uint32_t* row) {
  const uint32x2_t lanes = vld1_u32(row);
  return {vreinterpretq_s32_u32(vcombine_u32(lanes, lanes))};
}

// One chain of sums for each pair of rows and columns: at least eight, which hide an instruction's latency
// where W comes from memory; with more rows there are more.
template <Operand kOperand, int kRows, Prefetch kPrefetch>
void MatrixKernel(const MicroArguments& arguments) {
  using P = Product<kOperand>;
  constexpr int kPairs = (kRows + 1) / kSide;
  const uint32_t* a = arguments.rows;
  const auto* w = static_cast<const char*>(arguments.weight);
  const char* next = arguments.next;
  typename P::Sum sums[kPairs][kColumnPairs];
  for (auto& pair : sums)
    for (auto& sum : pair) sum = P::Sum::Zero();
  for (int64_t i = 0; i < arguments.groups; ++i) {
    if constexpr (kPrefetch == Prefetch::kStream) {
      for (int line = 0; line < kColumnPairs * int{sizeof(Lanes)}; line += 64)
        __builtin_prefetch(w + kStreamAhead + line, 0, kIntoL2);
    } else if constexpr (kPrefetch == Prefetch::kNext) {
      __builtin_prefetch(next, 0, kIntoL2);
      next += kRowRun * arguments.next_step;
    }
    Lanes rows[kPairs];
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p) {
      const uint32_t* pair = a + p * kSide * kRowRun;
      // A last row without another one is its own partner, whose sums nobody reads.
      const bool single = kSide * p + 1 == kRows;
      rows[p] = single ? Twice(pair) : Lanes::Load(pair);
    }
#pragma GCC unroll 8
    for (int c = 0; c < kColumnPairs; ++c) {
      const Lanes columns = Lanes::Load(w + c * sizeof(Lanes));
#pragma GCC unroll 4
      for (int p = 0; p < kPairs; ++p) sums[p][c] = P::MulAddMatrices(rows[p], columns, sums[p][c]);
    }
    a += kRows * kRowRun;
    w += kColumnPairs * sizeof(Lanes);
  }
  WithLeave<kOperand>(
      arguments, [&]<Leave kLeave>() __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            const auto& pair = sums[r / kSide];
            const auto row = r % kSide == 0 ? RowOf<0>(pair[2 * v], pair[2 * v + 1])
                                            : RowOf<1>(pair[2 * v], pair[2 * v + 1]);
            LeaveSum<kOperand, kLeave>(arguments, r, v * kLanes, row);
          }
        }
      });
}

template <Operand kOperand, Prefetch kPrefetch, int... kRows>
MicroKernelFn PickMatrixRows(int rows, std::integer_sequence<int, kRows...>) {
  static constexpr MicroKernelFn table[] = {MatrixKernel<kOperand, kRows + 1, kPrefetch>...};
  return table[rows - 1];
}

template <Operand kOperand, Prefetch kPrefetch>
MicroKernelFn PickMatrix(int rows) {
  return PickMatrixRows<kOperand, kPrefetch>(rows, std::make_integer_sequence<int, kTile.mr>{});
}

// Register tiles of pairs. W is in the operand's form always.
struct PairTiles {
  static constexpr int kMr = kTile.mr;
  static constexpr int kLanesOfK = kKBlock;
  template <Operand kOperand>
  void Multiply(const Panel& panel, W form, int64_t depth, int count, MicroArguments& arguments) {
    arguments.groups = depth / panel.group;
    (form == W::kPacked          ? PickMatrix<kOperand, Prefetch::kStream>(count)
     : form == W::kCachedAskNext ? PickMatrix<kOperand, Prefetch::kNext>(count)
                                 : PickMatrix<kOperand, Prefetch::kNone>(count))(arguments);
  }
};

void MultiplyMatrices(const Rows& rows, const Panel& panel, const Part& part, bool widen, float* c,
                      const Receiver* receiver) {
  if (!rows.matrix) return MultiplyVectors(rows, panel, part, widen, c, receiver);
  PairTiles tiles;
  if constexpr (DotOf(kThisIsa).bfloat16)
    if (rows.operand == Operand::kBFloat16)
      return MultiplyWith<Operand::kBFloat16>(rows, panel, part, widen, c, receiver, tiles);
  MultiplyWith<Operand::kInt8>(rows, panel, part, widen, c, receiver, tiles);
}

template <Operand kOperand>
int64_t SpinMatricesAs(int64_t steps, uint32_t* sink) {
  using P = Product<kOperand>;
  constexpr int kPairs = kTile.mr / kSide;
  typename P::Sum sums[kPairs][kColumnPairs];
  for (auto& pair : sums)
    for (auto& sum : pair) sum = P::Sum::Zero();
  const Lanes rows = Lanes::Load(sink), columns = Lanes::Load(sink + kLanes);
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 4
    for (int p = 0; p < kPairs; ++p)
#pragma GCC unroll 8
      for (int c = 0; c < kColumnPairs; ++c) sums[p][c] = P::MulAddMatrices(rows, columns, sums[p][c]);
  }
  uint32_t lanes[kLanes];
  for (auto& pair : sums)
    for (auto& sum : pair) {
      P::StoreSum(sum, lanes);
      for (uint32_t lane : lanes) *sink ^= lane;
    }
  return steps * kTile.mr * kTile.nr * kRowRun * DepthOf(kOperand);
}

int64_t SpinMatrices(Operand operand, int64_t steps, uint32_t* sink) {
  if constexpr (DotOf(kThisIsa).bfloat16)
    if (operand == Operand::kBFloat16) return SpinMatricesAs<Operand::kBFloat16>(steps, sink);
  if (operand == Operand::kInt8) return SpinMatricesAs<Operand::kInt8>(steps, sink);
  return Spin(operand, steps, sink);
}

}  // namespace
}  // namespace qkvgemm::cpu
