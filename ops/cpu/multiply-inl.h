// The product of normalised rows with a panel of W. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "ops/cpu/elements-inl.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"

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
constexpr int kIntoL2 = 2;  // the locality argument of __builtin_prefetch
// Row tiles that share the next K block among them; with more, arithmetic outlasts any memory.
constexpr int64_t kSharers = 8;

// c [rows][nr] (+)= a [k][rows] * w [k][nr]. Consecutive k go to `kUnroll` sets of accumulators: with few
// rows one chain of multiply-adds per vector would wait for its own latency (4 cycles) instead of for memory.
template <DType kType, int kRows, bool kZeroPoint, Prefetch kPrefetch>
void MicroKernel(const float* a, const void* weight, int64_t k, const float* zero_point, float* c,
                 bool accumulate, const char* next, int64_t next_step) {
  using E = Element<kType>;
  constexpr int kUnroll = kRows * kVectors * 4 <= kTile.mr * kVectors   ? 4
                          : kRows * kVectors * 2 <= kTile.mr * kVectors ? 2
                                                                        : 1;
  const auto* w = static_cast<const typename E::Type*>(weight);
  Vec sums[kUnroll][kRows][kVectors];
  for (int u = 0; u < kUnroll; ++u)
    for (int r = 0; r < kRows; ++r)
      for (int v = 0; v < kVectors; ++v) sums[u][r][v] = Vec::Zero();
  Vec zero[kVectors];
  if constexpr (kZeroPoint) {
    for (int v = 0; v < kVectors; ++v) zero[v] = Vec::Load(zero_point + v * kLanes);
  }
  const auto step = [&](int u) __attribute__((always_inline)) {
    if constexpr (kPrefetch == Prefetch::kStream) {
      constexpr int kRowBytes = kTile.nr * static_cast<int>(sizeof(typename E::Type));
      for (int line = 0; line < kRowBytes; line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(w) + kStreamAhead + line, 0, kIntoL2);
    } else if constexpr (kPrefetch == Prefetch::kNext) {
      __builtin_prefetch(next, 0, kIntoL2);
      next += next_step;
    }
    Vec row[kVectors];
    for (int v = 0; v < kVectors; ++v) {
      row[v] = E::Load(w + v * kLanes);
      if constexpr (kZeroPoint) row[v] = row[v] - zero[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = Vec::Set(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[u][r][v] = Vec::MulAdd(x, row[v], sums[u][r][v]);
    }
    a += kRows;
    w += kTile.nr;
  };
  int64_t i = 0;
  for (; i + kUnroll <= k; i += kUnroll) {
#pragma GCC unroll 4
    for (int u = 0; u < kUnroll; ++u) step(u);
  }
  for (; i < k; ++i) step(0);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      Vec s = sums[0][r][v];
      for (int u = 1; u < kUnroll; ++u) s = s + sums[u][r][v];
      float* target = c + r * kTile.nr + v * kLanes;
      if (accumulate) s = s + Vec::Load(target);
      s.Store(target);
    }
  }
}

using MicroKernelFn = void (*)(const float*, const void*, int64_t, const float*, float*, bool, const char*,
                               int64_t);

template <DType kType, bool kZeroPoint, Prefetch kPrefetch, int... kRows>
constexpr MicroKernelFn PickRows(int rows, std::integer_sequence<int, kRows...>) {
  constexpr MicroKernelFn table[] = {MicroKernel<kType, kRows + 1, kZeroPoint, kPrefetch>...};
  return table[rows - 1];
}

using Rows = std::make_integer_sequence<int, kTile.mr>;

MicroKernelFn StreamedKernel(DType type, bool zero_point, int rows) {
  switch (type) {
    case DType::kFloat:
      return PickRows<DType::kFloat, false, Prefetch::kStream>(rows, Rows{});
    case DType::kFloat16:
      return PickRows<DType::kFloat16, false, Prefetch::kStream>(rows, Rows{});
    case DType::kBFloat16:
      return PickRows<DType::kBFloat16, false, Prefetch::kStream>(rows, Rows{});
    case DType::kInt8:
      break;
  }
  return zero_point ? PickRows<DType::kInt8, true, Prefetch::kStream>(rows, Rows{})
                    : PickRows<DType::kInt8, false, Prefetch::kStream>(rows, Rows{});
}

MicroKernelFn WidenedKernel(bool next, int rows) {
  return next ? PickRows<DType::kFloat, false, Prefetch::kNext>(rows, Rows{})
              : PickRows<DType::kFloat, false, Prefetch::kNone>(rows, Rows{});
}

const void* WeightRow(const Panel& panel, int64_t row) {
  return static_cast<const char*>(panel.weight) + row * kTile.nr * static_cast<int64_t>(SizeOf(panel.tw));
}

// c = scale * c, per column, for every row.
void ScaleColumns(const float* scale, int rows, float* c) {
  for (int v = 0; v < kVectors; ++v) {
    const Vec s = Vec::Load(scale + v * kLanes);
    for (int r = 0; r < rows; ++r) {
      float* target = c + r * kTile.nr + v * kLanes;
      (Vec::Load(target) * s).Store(target);
    }
  }
}

void MultiplyStreamed(const float* a, int rows, const Panel& panel, float* c) {
  const MicroKernelFn kernel = StreamedKernel(panel.tw, panel.zero_point != nullptr, rows);
  if (panel.block == 0) {
    kernel(a, panel.weight, panel.k, panel.zero_point, c, false, nullptr, 0);
    if (panel.scale) ScaleColumns(panel.scale, rows, c);
    return;
  }
  // Scales by blocks along K: each block is summed by itself, then scaled and added.
  alignas(64) float part[kTile.mr * kTile.nr];
  std::fill(c, c + rows * kTile.nr, 0.0f);
  for (int64_t b = 0; b * panel.block < panel.k; ++b) {
    const float* zero_point = panel.zero_point ? panel.zero_point + b * panel.stride : nullptr;
    const int64_t begin = b * panel.block;
    kernel(a + begin * rows, WeightRow(panel, begin), std::min(panel.block, panel.k - begin), zero_point,
           part, false, nullptr, 0);
    for (int v = 0; v < kVectors; ++v) {
      const Vec s = Vec::Load(panel.scale + b * panel.stride + v * kLanes);
      for (int r = 0; r < rows; ++r) {
        const int at = r * kTile.nr + v * kLanes;
        Vec::MulAdd(Vec::Load(part + at), s, Vec::Load(c + at)).Store(c + at);
      }
    }
  }
}

// Rows [begin, begin + count) of the panel as float: dequantised where K-blocks need it; column scales are
// left to the end, where they cost one multiplication per result.
void Widen(const Panel& panel, int64_t begin, int64_t count, float* target) {
  if (panel.tw != DType::kInt8 || (panel.zero_point == nullptr && panel.block == 0)) {
    ToFloat(panel.tw, WeightRow(panel, begin), target, count * kTile.nr);
    return;
  }
  const auto* w = static_cast<const int8_t*>(WeightRow(panel, begin));
  for (int64_t i = 0; i < count; ++i, w += kTile.nr, target += kTile.nr) {
    const int64_t offset = panel.block ? (begin + i) / panel.block * panel.stride : 0;
    for (int v = 0; v < kVectors; ++v) {
      Vec q = Vec::LoadInt8(w + v * kLanes);
      if (panel.zero_point) q = q - Vec::Load(panel.zero_point + offset + v * kLanes);
      if (panel.block) q = q * Vec::Load(panel.scale + offset + v * kLanes);
      q.Store(target + v * kLanes);
    }
  }
}

void MultiplyWidened(const float* a, int64_t rows, const Panel& panel, float* c) {
  alignas(64) float wide[kKBlock * kTile.nr];
  const RowTiles tiles(rows, kTile.mr);
  const int64_t sharers = std::min(tiles.count, kSharers);
  const int64_t next_step = kTile.nr * static_cast<int64_t>(SizeOf(panel.tw)) / sharers;
  for (int64_t k0 = 0; k0 < panel.k; k0 += kKBlock) {
    const int64_t depth = std::min<int64_t>(kKBlock, panel.k - k0);
    const void* w = wide;
    if (panel.tw == DType::kFloat) {
      w = WeightRow(panel, k0);
    } else {
      Widen(panel, k0, depth, wide);
    }
    // The next block of this panel, or the first of the next panel, lies right behind. (Past the last one
    // this asks for memory that is not W's, which a prefetch may.)
    const auto* next = static_cast<const char*>(WeightRow(panel, k0 + depth));
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t begin = tiles.Begin(t);
      const int count = static_cast<int>(tiles.Begin(t + 1) - begin);
      WidenedKernel(t < sharers, count)(a + begin * panel.k + k0 * count, w, depth, nullptr,
                                        c + begin * kTile.nr, k0 > 0, next + t * depth * next_step,
                                        next_step);
    }
  }
  if (panel.k == 0) std::fill(c, c + rows * kTile.nr, 0.0f);
  if (panel.scale && panel.block == 0) {
    for (int64_t r = 0; r < rows; ++r) ScaleColumns(panel.scale, 1, c + r * kTile.nr);
  }
}

}  // namespace
}  // namespace qkvgemm::cpu
