// The innermost loop: a register tile of rows times a panel of W. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "ops/cpu/plan.h"
#include "ops/cpu/unpack-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr Tile kTile = TileOf(kThisIsa);
constexpr int kVectors = kTile.nr / kLanes;  // vectors in a panel row

// Which part of W a micro-kernel asks for while it computes.
enum class Prefetch {
  kNone,
  kStream,  // what it reads itself `kStreamAhead` bytes later, across the page boundaries at which the
            // processor's own prefetchers stop
  kNext,    // its share of the next K block, which is read when all row tiles are done with this one
};
constexpr int kStreamAhead = 8192;
// Up to so many products for each line of 64 bytes, W comes faster by the processor's prefetchers alone, and
// with more of them slower (Zen 5: BENCHMARKS.md). With AMX, and on Arm, asking for all was timed alone.
constexpr int kUnaskedProducts = kThisIsa >= Isa::kAmx ? 0 : 3;
constexpr int kIntoL2 = 2;  // the locality argument of __builtin_prefetch

struct MicroArguments {
  const uint32_t* rows;  // [groups * steps][rows] lanes
  const void* weight;    // [groups][nr][group]
  int64_t groups;
  const float* zero_point;  // [nr] or null
  uint32_t* sums;           // [rows][nr], float or int32
  bool accumulate;          // add to them
  // Not null: W's part lies in one of several blocks of scales. Sums are float, and what is added is scaled.
  const float* scale;  // [nr]
  // kInt8: sums of each row's integers, for what Corrected takes off.
  const int32_t* row_sums;
  int64_t row_sums_step;
  const char* next;  // Prefetch::kNext: what to ask for, `next_step` bytes further in each step
  int64_t next_step;
};

// What packed int8 weights have more than the weight.
constexpr int kMore = DotOf(kThisIsa).unsigned_weights ? 128 : 0;

// int32 sums of products with packed weights as what they are with weights less zero points, in float:
// sum of a (w - zero) = sum of a w' - (zero + more) sum of a. `zero_point`: the columns', or null.
[[gnu::always_inline]] inline Vec Corrected(Lanes sum, int32_t of_row, const float* zero_point) {
  if (zero_point == nullptr) return (sum - Lanes::Set(static_cast<uint32_t>(of_row * kMore))).ToFloat();
  const Lanes zero = Lanes::Round(Vec::Load(zero_point)) + Lanes::Set(static_cast<uint32_t>(kMore));
  return (sum - zero * Lanes::Set(static_cast<uint32_t>(of_row))).ToFloat();
}

// What a micro-kernel does with its sums, and with a vector of them, of row r and from column `column` on.
enum class Leave { kAsTheyAre, kScaled, kScaledLessZeroPoint };

template <Operand kOperand, Leave kLeave>
[[gnu::always_inline]] inline void LeaveSum(const MicroArguments& arguments, int r, int column,
                                            typename Product<kOperand>::Sum sum) {
  using P = Product<kOperand>;
  uint32_t* target = arguments.sums + r * kTile.nr + column;
  if constexpr (kLeave == Leave::kAsTheyAre) {
    P::StoreSum(arguments.accumulate ? sum + P::LoadSum(target) : sum, target);
    return;
  }
  Vec value;
  if constexpr (kOperand == Operand::kInt8) {
    const float* zero_point = kLeave == Leave::kScaledLessZeroPoint ? arguments.zero_point + column : nullptr;
    value = Corrected(sum, arguments.row_sums[r * arguments.row_sums_step], zero_point);
  } else {
    value = sum;
  }
  const Vec before = arguments.accumulate ? Lanes::Load(target).AsFloat() : Vec::Zero();
  Lanes::OfFloat(Vec::MulAdd(value, Vec::Load(arguments.scale + column), before)).Store(target);
}

// Calls leave<Leave>() for what the arguments ask for.
template <Operand kOperand, typename Fn>
[[gnu::always_inline]] inline void WithLeave(const MicroArguments& arguments, const Fn& leave) {
  if constexpr (kOperand != Operand::kBFloat16)
    if (arguments.scale != nullptr) {
      if (kOperand == Operand::kInt8 && arguments.zero_point != nullptr)
        return leave.template operator()<Leave::kScaledLessZeroPoint>();
      return leave.template operator()<Leave::kScaled>();
    }
  leave.template operator()<Leave::kAsTheyAre>();
}

// Consecutive steps go to `kUnroll` sets of accumulators: with few rows one chain of multiply-adds per vector
// would wait for its own latency (4 to 6 cycles) instead of for memory.
template <Operand kOperand, typename L, int kRows, bool kZeroPoint, Prefetch kPrefetch>
void MicroKernel(const MicroArguments& arguments) {
  using P = Product<kOperand>;
  using U = Unpack<kOperand, L>;
  constexpr int kSteps = U::kSteps;
  constexpr int kRowsLeft = kTile.mr - (kSteps - 1);  // by the registers that factors of further steps take
  constexpr int kUnroll = kRows * 4 <= kRowsLeft ? 4 : kRows * 2 <= kRowsLeft ? 2 : 1;
  constexpr int kGroups = std::max(1, kUnroll / kSteps);  // in one turn of the loop
  constexpr int kVectorBytes = kLanes * L::kGroup * static_cast<int>(SizeOf(L::kType));
  constexpr bool kAsksAhead =
      kPrefetch == Prefetch::kStream && kRows * kSteps * 64 / kVectorBytes > kUnaskedProducts;
  const uint32_t* a = arguments.rows;
  const auto* w = static_cast<const char*>(arguments.weight);
  const char* next = arguments.next;
  typename P::Sum sums[kUnroll][kRows][kVectors];
  for (int u = 0; u < kUnroll; ++u)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[u][r][v] = P::Sum::Zero();
  Vec zero[kVectors] = {};
  if constexpr (kZeroPoint) {
    for (int v = 0; v < kVectors; ++v) zero[v] = Vec::Load(arguments.zero_point + v * kLanes);
  }
  const auto group = [&](int g) __attribute__((always_inline)) {
    if constexpr (kAsksAhead) {
      for (int line = 0; line < kVectors * kVectorBytes; line += 64)
        __builtin_prefetch(w + kStreamAhead + line, 0, kIntoL2);
    } else if constexpr (kPrefetch == Prefetch::kNext) {
      __builtin_prefetch(next, 0, kIntoL2);
      next += arguments.next_step;
    }
    typename P::Factor factors[kVectors][kSteps];
    for (int v = 0; v < kVectors; ++v)
      U::template Load<kZeroPoint>(w + v * kVectorBytes, zero[v], factors[v]);
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) {
      const int u = (g * kSteps + s) % kUnroll;
#pragma GCC unroll 16
      for (int r = 0; r < kRows; ++r) {
        const typename P::Factor x = P::Row(a + r);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[u][r][v] = P::MulAdd(x, factors[v][s], sums[u][r][v]);
      }
      a += kRows;
    }
    w += kVectors * kVectorBytes;
  };
  int64_t i = 0;
  for (; i + kGroups <= arguments.groups; i += kGroups) {
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) group(g);
  }
  for (; i < arguments.groups; ++i) group(0);
  const auto leave = [&]<Leave kLeave>() __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        typename P::Sum sum = sums[0][r][v];
        for (int u = 1; u < kUnroll; ++u) sum = sum + sums[u][r][v];
        LeaveSum<kOperand, kLeave>(arguments, r, v * kLanes, sum);
      }
    }
  };
  WithLeave<kOperand>(arguments, leave);
}

using MicroKernelFn = void (*)(const MicroArguments&);

template <Operand kOperand, typename L, bool kZeroPoint, Prefetch kPrefetch, int... kRows>
MicroKernelFn PickRows(int rows, std::integer_sequence<int, kRows...>) {
  static constexpr MicroKernelFn table[] = {MicroKernel<kOperand, L, kRows + 1, kZeroPoint, kPrefetch>...};
  return table[rows - 1];
}

// Rows that a micro-kernel may have: bfloat16 weights are multiplied in float for few.
template <Operand kOperand, typename L>
constexpr int kMostRows =
    kOperand == Operand::kFloat && std::is_same_v<L, Pairs> ? std::min(kTile.mr, kExactRows) : kTile.mr;

template <Operand kOperand, typename L, bool kZeroPoint, Prefetch kPrefetch>
MicroKernelFn Pick(int rows) {
  return PickRows<kOperand, L, kZeroPoint, kPrefetch>(
      rows, std::make_integer_sequence<int, kMostRows<kOperand, L>>{});
}

// For W as it is packed.
template <Operand kOperand>
MicroKernelFn PackedKernel(const Panel& panel, int rows) {
  return WithLayout<kOperand>(panel.tw, [&]<typename L>(L) {
    if constexpr (L::kType == DType::kInt8 && kOperand == Operand::kFloat)
      if (panel.zero_point != nullptr) return Pick<kOperand, L, true, Prefetch::kStream>(rows);
    return Pick<kOperand, L, false, Prefetch::kStream>(rows);
  });
}

// For W in the operand's own form, in cache.
template <Operand kOperand>
MicroKernelFn CachedKernel(bool next, int rows) {
  using L = NativeLayout<kOperand>;
  return next ? Pick<kOperand, L, false, Prefetch::kNext>(rows)
              : Pick<kOperand, L, false, Prefetch::kNone>(rows);
}

}  // namespace
}  // namespace qkvgemm::cpu
