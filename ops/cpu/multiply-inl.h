// The product of normalised rows with a panel of W. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/cpu/kernels.h"
#include "ops/cpu/micro_kernel-inl.h"

namespace qkvgemm::cpu {
namespace {

// Row tiles that share the next K block among them; with more, arithmetic outlasts any memory.
constexpr int64_t kSharers = 8;

const char* WeightAt(const Panel& panel, int64_t k) {
  return static_cast<const char*>(panel.weight) + k * kTile.nr * static_cast<int64_t>(SizeOf(panel.tw));
}

// The sums of rows [begin, begin + count) in block b of scales, [count][digits][nr], as float, scaled: into
// `to` [count][nr], or added to it. `from` and `to` may be the same.
template <Operand kOperand, bool kZeroPoint>
void FinishRows(const Rows& rows, const Panel& panel, int64_t b, int64_t begin, int64_t count,
                const uint32_t* from, float* to, bool add) {
  using P = Product<kOperand>;
  Vec scale[kVectors];
  Lanes zero[kVectors];
  // Sum of a (w - zero) = sum of a w' - (zero + what w' has more than w) sum of a, in integers.
  const int32_t more = panel.is_unsigned ? 128 : 0;
  for (int v = 0; v < kVectors; ++v) {
    scale[v] = Vec::Load(panel.scale + b * panel.stride + v * kLanes);
    if constexpr (kZeroPoint)
      zero[v] = Lanes::Round(Vec::Load(panel.zero_point + b * panel.stride + v * kLanes)) +
                Lanes::Set(static_cast<uint32_t>(more));
  }
  for (int64_t r = 0; r < count; ++r, to += kTile.nr) {
    Vec values[kVectors];
    for (int v = 0; v < kVectors; ++v) values[v] = Vec::Zero();
    if constexpr (kOperand == Operand::kInt8) {
      const int32_t* sums = rows.sums + (begin + r) * rows.digits * rows.blocks + b;
      for (int d = 0; d < rows.digits; ++d, from += kTile.nr, sums += rows.blocks) {
        const Lanes of_row = Lanes::Set(static_cast<uint32_t>(kZeroPoint ? *sums : *sums * more));
        for (int v = 0; v < kVectors; ++v) {
          const Lanes sum = P::LoadSum(from + v * kLanes);
          const Vec digit = (kZeroPoint ? sum - zero[v] * of_row : sum - of_row).ToFloat();
          values[v] = Vec::MulAdd(values[v], Vec::Set(256.0f), digit);
        }
      }
      const Vec step = Vec::Set(rows.scale[begin + r]);
      for (int v = 0; v < kVectors; ++v) values[v] = values[v] * step;
    } else {
      for (int v = 0; v < kVectors; ++v) values[v] = P::LoadSum(from + v * kLanes);
      from += kTile.nr;
    }
    for (int v = 0; v < kVectors; ++v) {
      float* at = to + v * kLanes;
      (add ? Vec::MulAdd(values[v], scale[v], Vec::Load(at)) : values[v] * scale[v]).Store(at);
    }
  }
}

template <Operand kOperand>
void Finish(const Rows& rows, const Panel& panel, int64_t b, int64_t begin, int64_t count,
            const uint32_t* from, float* to, bool add) {
  if (kOperand == Operand::kInt8 && panel.zero_point != nullptr)
    return FinishRows<kOperand, true>(rows, panel, b, begin, count, from, to, add);
  FinishRows<kOperand, false>(rows, panel, b, begin, count, from, to, add);
}

// The panel's k in [begin, begin + depth), within one block of scales, in the operand's own form.
template <Operand kOperand>
void Widen(const Panel& panel, const float* zero_point, int64_t begin, int64_t depth, uint32_t* target) {
  WithLayout<kOperand>(panel.tw, [&]<typename L>(L) {
    using U = Unpack<kOperand, L>;
    constexpr int kVectorBytes = kLanes * L::kGroup * static_cast<int>(SizeOf(L::kType));
    const char* w = WeightAt(panel, begin);
    const auto widen = [&]<bool kZeroPoint>() {
      Vec zero[kVectors] = {};
      for (int v = 0; kZeroPoint && v < kVectors; ++v) zero[v] = Vec::Load(zero_point + v * kLanes);
      for (int64_t g = 0; g < depth / L::kGroup; ++g, w += kVectors * kVectorBytes)
        for (int v = 0; v < kVectors; ++v) {
          typename U::Factor factors[U::kSteps];
          U::template Load<kZeroPoint>(w + v * kVectorBytes, zero[v], factors);
          for (int s = 0; s < U::kSteps; ++s) {
            uint32_t* to = target + (g * U::kSteps + s) * kTile.nr + v * kLanes;
            if constexpr (std::is_same_v<typename U::Factor, Lanes>) {
              factors[s].Store(to);
            } else {
              Lanes::OfFloat(factors[s]).Store(to);
            }
          }
        }
    };
    if (L::kType == DType::kInt8 && zero_point != nullptr) return widen.template operator()<true>();
    widen.template operator()<false>();
  });
}

// `Tiles` multiplies one register tile: see VectorTiles.
template <Operand kOperand, typename TilesT>
void MultiplyWith(const Rows& rows, const Panel& panel, bool widen, float* c, TilesT& register_tiles) {
  constexpr int kDepth = DepthOf(kOperand);
  constexpr int kMr = TilesT::kMr;
  alignas(64) uint32_t wide[kKBlock * kTile.nr];
  alignas(64) uint32_t part[kMr * kTile.nr];
  auto* sums = reinterpret_cast<uint32_t*>(c);  // sums of a whole column of W are finished in place
  const int64_t digits = rows.digits;
  const RowTiles tiles(rows.count, kMr / rows.digits);
  const bool stream = tiles.count == 1 && !widen;
  const bool blocks = panel.block != 0;
  const int64_t scale_depth = blocks ? panel.block : panel.k;
  const int64_t most = stream ? panel.k : int64_t{kKBlock} * kDepth;
  const int64_t sharers = std::min(tiles.count, kSharers);
  const int64_t next_step = kTile.nr * kDepth * static_cast<int64_t>(SizeOf(panel.tw)) / sharers;
  if (panel.k == 0) std::fill(c, c + rows.count * kTile.nr, 0.0f);
  for (int64_t k0 = 0, depth; k0 < panel.k; k0 += depth) {
    const int64_t b = k0 / scale_depth;
    depth = std::min({most, (b + 1) * scale_depth - k0, panel.k - k0});
    const float* zero_point = panel.zero_point ? panel.zero_point + b * panel.stride : nullptr;
    if (widen) Widen<kOperand>(panel, zero_point, k0, depth, wide);
    // The next block of this panel, or the first of the next panel, lies right behind. (Past the last one
    // this asks for memory that is not W's, which a prefetch may.)
    const char* next = WeightAt(panel, k0 + depth);
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t begin = tiles.Begin(t), count = tiles.Begin(t + 1) - begin;
      MicroArguments arguments;
      arguments.rows = rows.lanes + digits * (begin * panel.k + k0 * count) / kDepth;
      arguments.weight = widen ? reinterpret_cast<const char*>(wide) : WeightAt(panel, k0);
      arguments.groups = depth / (stream ? panel.group : kDepth);
      arguments.zero_point = zero_point;
      arguments.sums = blocks ? part : sums + begin * digits * kTile.nr;
      arguments.accumulate = !blocks && k0 > 0;
      arguments.next = next + t * (depth / kDepth) * next_step;
      arguments.next_step = next_step;
      register_tiles.template Multiply<kOperand>(panel, stream, t < sharers, static_cast<int>(count * digits),
                                                 arguments);
      if (blocks) Finish<kOperand>(rows, panel, b, begin, count, part, c + begin * kTile.nr, k0 > 0);
    }
  }
  if (panel.scale && !blocks && panel.k > 0) Finish<kOperand>(rows, panel, 0, 0, rows.count, sums, c, false);
}

// Register tiles of vectors.
struct VectorTiles {
  static constexpr int kMr = kTile.mr;
  template <Operand kOperand>
  void Multiply(const Panel& panel, bool stream, bool next, int count, const MicroArguments& arguments) {
    (stream ? StreamedKernel<kOperand>(panel, count) : CachedKernel<kOperand>(next, count))(arguments);
  }
};

void MultiplyVectors(const Rows& rows, const Panel& panel, bool widen, float* c) {
  constexpr Dot kDot = DotOf(kThisIsa);
  VectorTiles tiles;
  if constexpr (kDot.bfloat16)
    if (rows.operand == Operand::kBFloat16)
      return MultiplyWith<Operand::kBFloat16>(rows, panel, widen, c, tiles);
  if constexpr (kDot.int8)
    if (rows.operand == Operand::kInt8) return MultiplyWith<Operand::kInt8>(rows, panel, widen, c, tiles);
  MultiplyWith<Operand::kFloat>(rows, panel, widen, c, tiles);
}

}  // namespace
}  // namespace qkvgemm::cpu
