// One step of a product for each operand: a row's lane, broadcast, times a vector of W's lanes, added to
// sums. Part of the body in qkv_gemm-inl.h; instruction sets with dot products specialise it further.
#pragma once

#include <cstdint>
#include <type_traits>

#include "ops/cpu/isa.h"

namespace qkvgemm::cpu {
namespace {

template <Operand kOperand>
struct Product;

// `FactorT`: a vector of W, and a row's lane in each of its places; `SumT`: their sums. Vec or Lanes.
template <typename FactorT, typename SumT>
struct ProductOf {
  using Factor = FactorT;
  using Sum = SumT;
  static Factor Row(const uint32_t* lane) { return As<Factor>(Lanes::Set(*lane)); }
  static Factor LoadFactor(const void* p) { return As<Factor>(Lanes::Load(p)); }
  static Sum LoadSum(const uint32_t* p) { return As<Sum>(Lanes::Load(p)); }
  static void StoreSum(Sum sum, uint32_t* p) {
    if constexpr (std::is_same_v<Sum, Lanes>) {
      sum.Store(p);
    } else {
      Lanes::OfFloat(sum).Store(p);
    }
  }

 private:
  template <typename T>
  static T As(Lanes lanes) {
    if constexpr (std::is_same_v<T, Lanes>) {
      return lanes;
    } else {
      return lanes.AsFloat();
    }
  }
};

// Columns whose `kRun` lanes lie together, as vectors of one lane of each.
template <int kRun>
struct Columns {
  static_assert(kRun == 1);
  static void Load(const void* p, Lanes (&lanes)[kRun]) { lanes[0] = Lanes::Load(p); }
};

template <>
struct Product<Operand::kFloat> : ProductOf<Vec, Vec> {
  static Vec MulAdd(Vec row, Vec w, Vec sum) { return Vec::MulAdd(row, w, sum); }
};

}  // namespace
}  // namespace qkvgemm::cpu
