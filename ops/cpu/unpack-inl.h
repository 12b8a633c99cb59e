// W as it is packed, turned into the factors of a product, in registers. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cpu/elements-inl.h"
#include "ops/cpu/simd_product.h"

namespace qkvgemm::cpu {
namespace {

// How W's elements lie: in their own type, `kGroupOf` consecutive k of a column together.
template <DType kTypeOf, int kGroupOf>
struct Layout {
  static constexpr DType kType = kTypeOf;
  static constexpr int kGroup = kGroupOf;
};
using Floats = Layout<DType::kFloat, 1>;
// In lanes of 32 bits, as many as a product takes of a column.
constexpr int kColumnRun = DotOf(kThisIsa).column_run;
using Pairs = Layout<DType::kBFloat16, DepthOf(Operand::kBFloat16) * kColumnRun>;
using Quads = Layout<DType::kInt8, DepthOf(Operand::kInt8) * kColumnRun>;

// The form that an operand's products read W in.
template <Operand kOperand>
using NativeLayout = std::conditional_t<kOperand == Operand::kFloat, Floats,
                                        std::conditional_t<kOperand == Operand::kBFloat16, Pairs, Quads>>;

// The factors of kLanes columns at p for the k of one group: one for each step of the product.
template <Operand kOperand, typename L>
struct Unpack {
  static constexpr int kSteps = L::kGroup / DepthOf(kOperand);
  using Factor = typename Product<kOperand>::Factor;

  // `zero`: the columns' zero points, subtracted where kZeroPoint.
  template <bool kZeroPoint>
  static void Load(const char* p, Vec zero, Factor (&factors)[kSteps]) {
    const auto less = [&](Vec v) { return kZeroPoint ? v - zero : v; };
    if constexpr (std::is_same_v<L, NativeLayout<kOperand>>) {
      factors[0] = Product<kOperand>::LoadFactor(p);
    } else if constexpr (L::kGroup == 1) {
      using E = Element<L::kType>;
      factors[0] = less(E::Load(reinterpret_cast<const typename E::Type*>(p)));
    } else {
      static_assert(std::is_same_v<L, Pairs>);
      constexpr int kRun = L::kGroup / DepthOf(Operand::kBFloat16);
      Lanes pairs[kRun];
      Columns<kRun>::Load(p, pairs);
      for (int i = 0; i < kRun; ++i) {
        factors[2 * i] = pairs[i].template Left<16>().AsFloat();
        factors[2 * i + 1] = (pairs[i] & Lanes::Set(0xffff0000u)).AsFloat();
      }
    }
  }
};

// Calls fn(Layout) for the layout that W of a type has where it is multiplied as kOperand.
template <Operand kOperand, typename Fn>
auto WithLayout(DType type, const Fn& fn) {
  if constexpr (kOperand == Operand::kFloat) {
    if constexpr (DotOf(kThisIsa).bfloat16)
      if (type == DType::kBFloat16) return fn(Pairs{});
    if (type == DType::kInt8) return fn(Layout<DType::kInt8, 1>{});
    if (type == DType::kFloat16) return fn(Layout<DType::kFloat16, 1>{});
    if constexpr (!DotOf(kThisIsa).bfloat16)
      if (type == DType::kBFloat16) return fn(Layout<DType::kBFloat16, 1>{});
    return fn(Floats{});
  } else {
    (void)type;
    return fn(NativeLayout<kOperand>{});
  }
}

}  // namespace
}  // namespace qkvgemm::cpu
