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

// What a register tile's W is: as packed, streaming by, or in the operand's own form, in cache, while the
// next K block is asked for or not.
enum class W { kPacked, kCached, kCachedAskNext };

template <Operand kOperand>
bool IsNative(const Panel& panel) {
  return panel.tw == NativeLayout<kOperand>::kType;
}

const char* WeightAt(const Panel& panel, int64_t k) {
  return static_cast<const char*>(panel.weight) + k * kTile.nr * static_cast<int64_t>(SizeOf(panel.tw));
}

// A row tile's sums over a whole column of W, [count][digits][nr], as float, scaled: [count][nr] in the same
// place. Where there are several blocks of scales, digits are float and scaled already.
template <Operand kOperand, int kDigits>
void FinishDigits(const Rows& rows, const Panel& panel, int64_t first_row, int64_t count, float* c) {
  const bool blocks = panel.block != 0;
  const int32_t* of_row =
      kOperand == Operand::kInt8 ? rows.sums + first_row * kDigits * rows.blocks : nullptr;
  Vec scale[kVectors];
  for (int v = 0; v < kVectors; ++v) scale[v] = blocks ? Vec::Set(1.0f) : Vec::Load(panel.scale + v * kLanes);
  const float* from = c;
  for (int64_t r = first_row; r < first_row + count; ++r, c += kTile.nr, from += kDigits * kTile.nr) {
    Vec row_scale = Vec::Set(1.0f);
    if constexpr (kOperand == Operand::kInt8) row_scale = Vec::Set(rows.scale[r]);
    for (int v = 0; v < kVectors; ++v) {
      Vec value;
      if constexpr (kOperand == Operand::kInt8) {
        for (int d = 0; d < kDigits; ++d) {
          const float* at = from + d * kTile.nr + v * kLanes;
          const float* zero_point = panel.zero_point ? panel.zero_point + v * kLanes : nullptr;
          const Vec digit =
              blocks ? Vec::Load(at) : Corrected(Lanes::Load(at), of_row[d * rows.blocks], zero_point);
          value = d == 0 ? digit : Vec::MulAdd(value, Vec::Set(256.0f), digit);
        }
        value = value * row_scale;
      } else {
        value = Vec::Load(from + v * kLanes);
      }
      (blocks ? value : value * scale[v]).Store(c + v * kLanes);
    }
    if constexpr (kOperand == Operand::kInt8) of_row += kDigits * rows.blocks;
  }
}

template <Operand kOperand>
void Finish(const Rows& rows, const Panel& panel, int64_t first_row, int64_t count, float* c) {
  if constexpr (kOperand == Operand::kInt8) {
    if (rows.digits == kExactDigits)
      return FinishDigits<kOperand, kExactDigits>(rows, panel, first_row, count, c);
    if (rows.digits == kFewDigits)
      return FinishDigits<kOperand, kFewDigits>(rows, panel, first_row, count, c);
  }
  FinishDigits<kOperand, 1>(rows, panel, first_row, count, c);
}

// A row tile's sums over a whole column of W, to whom results go.
template <Operand kOperand>
void HandOver(const Rows& rows, const Panel& panel, int64_t first_row, int64_t count, float* sums,
              const Receiver& receiver) {
  if (panel.scale != nullptr && (panel.block == 0 || kOperand == Operand::kInt8))
    Finish<kOperand>(rows, panel, first_row, count, sums);
  receiver.take(receiver.context, first_row, {sums, count, kTile.nr});
}

template <Operand kOperand>
void CombineAs(const Rows& rows, const Panel& panel, float* sums, int64_t parts, const Receiver& receiver) {
  const int64_t size = rows.count * rows.digits * kTile.nr;
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t i = 0; i < size; i += kLanes) {
      float* const to = sums + i;
      const float* const from = to + part * size;
      if (kOperand == Operand::kInt8 && panel.block == 0) {
        (Lanes::Load(to) + Lanes::Load(from)).Store(reinterpret_cast<uint32_t*>(to));
      } else {
        (Vec::Load(to) + Vec::Load(from)).Store(to);
      }
    }
  HandOver<kOperand>(rows, panel, 0, rows.count, sums, receiver);
}

void Combine(const Rows& rows, const Panel& panel, float* sums, int64_t parts, const Receiver& receiver) {
  constexpr Dot kDot = DotOf(kThisIsa);
  if constexpr (kDot.int8)
    if (rows.operand == Operand::kInt8) return CombineAs<Operand::kInt8>(rows, panel, sums, parts, receiver);
  // Sums of bfloat16 are float.
  CombineAs<Operand::kFloat>(rows, panel, sums, parts, receiver);
}

// The panel's k in [begin, begin + depth), within one block of scales, as float.
void Widen(const Panel& panel, const float* zero_point, int64_t begin, int64_t depth, uint32_t* target) {
  const auto widen = [&]<typename L, bool kZeroPoint>() {
    using U = Unpack<Operand::kFloat, L>;
    constexpr int kVectorBytes = kLanes * L::kGroup * static_cast<int>(SizeOf(L::kType));
    const char* w = WeightAt(panel, begin);
    Vec zero[kVectors] = {};
    for (int v = 0; kZeroPoint && v < kVectors; ++v) zero[v] = Vec::Load(zero_point + v * kLanes);
    uint32_t* to = target;
    for (int64_t k = 0; k < depth; k += L::kGroup)
      for (int v = 0; v < kVectors; ++v, w += kVectorBytes) {
        Vec factors[U::kSteps];
        U::template Load<kZeroPoint>(w, zero[v], factors);
        for (int s = 0; s < U::kSteps; ++s, to += kLanes) Lanes::OfFloat(factors[s]).Store(to);
      }
  };
  WithLayout<Operand::kFloat>(panel.tw, [&]<typename L>(L) {
    // Plans multiply pairs as they are.
    if constexpr (!std::is_same_v<L, Pairs>) {
      if constexpr (L::kType == DType::kInt8)
        if (zero_point != nullptr) return widen.template operator()<L, true>();
      widen.template operator()<L, false>();
    }
  });
}

// `register_tiles` multiplies one register tile: see VectorTiles.
template <Operand kOperand, typename TilesT>
void MultiplyWith(const Rows& rows, const Panel& panel, const Part& part, bool widen, float* c,
                  const Receiver* receiver, TilesT& register_tiles) {
  constexpr int kDepth = DepthOf(kOperand);
  alignas(64) uint32_t wide[kKBlock * kTile.nr];
  const RowTiles tiles(rows.count, TilesT::kMr / rows.digits);
  const int64_t first_row = tiles.Begin(part.first_tile), tile_count = part.end_tile - part.first_tile;
  const int64_t digits = rows.digits;
  const int64_t scale_depth = panel.block ? panel.block : panel.k;
  // One tile reads W once, in pieces as long as scales allow; and integers are corrected for a whole block.
  // A tile is summed up alike whatever part it is in.
  const bool whole = (tiles.count == 1 && !widen) || (kOperand == Operand::kInt8 && panel.block != 0);
  const int64_t most = whole ? panel.k : int64_t{TilesT::kLanesOfK} * kDepth;
  const int64_t sharers = std::min(tile_count, kSharers);
  MicroArguments arguments{};
  arguments.next_step = kTile.nr * kDepth * static_cast<int64_t>(SizeOf(panel.tw)) / sharers;
  arguments.row_sums_step = rows.blocks;
  if (panel.k == 0) {
    const int64_t count = tiles.Begin(part.end_tile) - first_row;
    std::fill(c, c + count * kTile.nr, 0.0f);
    receiver->take(receiver->context, first_row, {c, count, kTile.nr});
  }
  for (int64_t k0 = part.first_k, depth; k0 < part.end_k; k0 += depth) {
    const int64_t b = k0 / scale_depth;
    depth = std::min({most, (b + 1) * scale_depth - k0, part.end_k - k0});
    arguments.zero_point = panel.zero_point ? panel.zero_point + b * panel.stride : nullptr;
    arguments.scale = panel.block ? panel.scale + b * panel.stride : nullptr;
    if constexpr (kOperand == Operand::kFloat)
      if (widen) Widen(panel, arguments.zero_point, k0, depth, wide);
    arguments.weight = widen ? reinterpret_cast<const char*>(wide) : WeightAt(panel, k0);
    arguments.accumulate = k0 > part.first_k;
    // The next block of this panel, or the first of the next panel, lies right behind. (Past the last one
    // this asks for memory that is not W's, which a prefetch may.)
    const char* next = WeightAt(panel, k0 + depth);
    for (int64_t t = 0; t < tile_count; ++t) {
      const int64_t begin = tiles.Begin(part.first_tile + t);
      const int64_t count = tiles.Begin(part.first_tile + t + 1) - begin;
      float* const sums = c + (begin - first_row) * digits * kTile.nr;
      arguments.rows = rows.lanes + digits * (begin * panel.k + k0 * count) / kDepth;
      arguments.sums = reinterpret_cast<uint32_t*>(sums);
      arguments.row_sums = rows.sums + begin * digits * rows.blocks + b;
      arguments.next = next + t * (depth / kDepth) * arguments.next_step;
      const W form = !widen && (tiles.count == 1 || !IsNative<kOperand>(panel)) ? W::kPacked
                     : t < sharers                                              ? W::kCachedAskNext
                                                                                : W::kCached;
      const bool last = k0 + depth == part.end_k && receiver != nullptr;
      register_tiles.template Multiply<kOperand>(panel, form, depth, static_cast<int>(count * digits),
                                                 arguments);
      if (last) HandOver<kOperand>(rows, panel, begin, count, sums, *receiver);
    }
  }
}

// Register tiles of vectors.
struct VectorTiles {
  static constexpr int kMr = kTile.mr;
  static constexpr int kLanesOfK = kKBlock;
  template <Operand kOperand>
  void Multiply(const Panel& panel, W form, int64_t depth, int count, MicroArguments& arguments) {
    const bool packed = form == W::kPacked;
    arguments.groups = depth / (packed ? panel.group : DepthOf(kOperand));
    (packed ? PackedKernel<kOperand>(panel, count)
            : CachedKernel<kOperand>(form == W::kCachedAskNext, count))(arguments);
  }
};

void MultiplyVectors(const Rows& rows, const Panel& panel, const Part& part, bool widen, float* c,
                     const Receiver* receiver) {
  constexpr Dot kDot = DotOf(kThisIsa);
  VectorTiles tiles;
  if constexpr (kDot.bfloat16 && kDot.column_run == 1)
    if (rows.operand == Operand::kBFloat16)
      return MultiplyWith<Operand::kBFloat16>(rows, panel, part, widen, c, receiver, tiles);
  if constexpr (kDot.int8 && kDot.column_run == 1)
    if (rows.operand == Operand::kInt8)
      return MultiplyWith<Operand::kInt8>(rows, panel, part, widen, c, receiver, tiles);
  MultiplyWith<Operand::kFloat>(rows, panel, part, widen, c, receiver, tiles);
}

}  // namespace
}  // namespace qkvgemm::cpu
