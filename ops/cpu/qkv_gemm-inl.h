// The kernels, written once over `Vec`. Each translation unit includes one simd_*.h, then this file, and so
// compiles them for its own instruction set; everything is in an unnamed namespace, so that no unit borrows
// another's code.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"

namespace qkvgemm::cpu {
namespace {

constexpr int kLanes = Vec::kLanes;

// --- element types
// -------------------------------------------------------------------------------------------------

template <DType kType>
struct Element;
template <>
struct Element<DType::kFloat> {
  using Type = float;
  static Vec Load(const float* p) { return Vec::Load(p); }
};
template <>
struct Element<DType::kFloat16> {
  using Type = uint16_t;
  static Vec Load(const uint16_t* p) { return Vec::LoadFloat16(p); }
};
template <>
struct Element<DType::kBFloat16> {
  using Type = uint16_t;
  static Vec Load(const uint16_t* p) { return Vec::LoadBFloat16(p); }
};
template <>
struct Element<DType::kInt8> {
  using Type = int8_t;
  static Vec Load(const int8_t* p) { return Vec::LoadInt8(p); }
};

// Input tensors are aligned to their element at best: 16-bit elements are read through memcpy in tails.
uint16_t HalfAt(const void* p, int64_t i) {
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(p) + 2 * i, sizeof h);
  return h;
}

void ToFloat(DType from, const void* source, float* target, int64_t count) {
  int64_t i = 0;
  switch (from) {
    case DType::kFloat:
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kFloat16: {
      const auto* p = static_cast<const uint16_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadFloat16(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = Float16ToFloat(HalfAt(source, i));
      return;
    }
    case DType::kBFloat16: {
      const auto* p = static_cast<const uint16_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadBFloat16(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = BFloat16ToFloat(HalfAt(source, i));
      return;
    }
    case DType::kInt8: {
      const auto* p = static_cast<const int8_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadInt8(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = static_cast<float>(p[i]);
      return;
    }
  }
}

void FromFloat(DType to, const float* source, void* target, int64_t count) {
  int64_t i = 0;
  if (to == DType::kFloat16) {
    auto* p = static_cast<uint16_t*>(target);
    for (; i + kLanes <= count; i += kLanes) Vec::Load(source + i).StoreFloat16(p + i);
    for (; i < count; ++i) {
      const uint16_t h = FloatToFloat16(source[i]);
      std::memcpy(p + i, &h, sizeof h);
    }
  } else if (to == DType::kBFloat16) {
    auto* p = static_cast<uint16_t*>(target);
    for (; i + kLanes <= count; i += kLanes) Vec::Load(source + i).StoreBFloat16(p + i);
    for (; i < count; ++i) {
      const uint16_t h = FloatToBFloat16(source[i]);
      std::memcpy(p + i, &h, sizeof h);
    }
  } else {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  }
}

// --- norm
// ----------------------------------------------------------------------------------------------------------

// Sum of f(x[i]) with four vectors of partial sums: short chains, and each addend meets few roundings.
template <typename VecFn, typename ScalarFn>
float Reduce(const float* x, int64_t k, VecFn vec, ScalarFn scalar) {
  Vec s0 = Vec::Zero(), s1 = s0, s2 = s0, s3 = s0;
  int64_t i = 0;
  for (; i + 4 * kLanes <= k; i += 4 * kLanes) {
    s0 = vec(Vec::Load(x + i), s0);
    s1 = vec(Vec::Load(x + i + kLanes), s1);
    s2 = vec(Vec::Load(x + i + 2 * kLanes), s2);
    s3 = vec(Vec::Load(x + i + 3 * kLanes), s3);
  }
  for (; i + kLanes <= k; i += kLanes) s0 = vec(Vec::Load(x + i), s0);
  float sum = ((s0 + s1) + (s2 + s3)).Sum();
  for (; i < k; ++i) sum += scalar(x[i]);
  return sum;
}

// 1/sqrt(mean square + epsilon). A row whose statistic is 0 (a zero row at epsilon 0) has no direction to
// scale: it stays 0 instead of becoming 0 * infinity.
float ReciprocalDeviation(float square, float epsilon) {
  const float d = square + epsilon;
  return d == 0.0f ? 0.0f : 1.0f / std::sqrt(d);
}

void Normalize(const RowNorm& norm, const float* x, float* out, int64_t k) {
  if (k == 0) return;
  if (norm.norm == NormType::kNone) {
    if (out != x) std::memcpy(out, x, static_cast<size_t>(k) * sizeof(float));
    return;
  }
  const float count = static_cast<float>(k);
  float mean = 0.0f, rstd;
  if (norm.norm == NormType::kLayerNorm) {
    // Two passes, the second corrected by the residual of the first (Chan, Golub, LeVeque 1983): exact enough
    // when the mean is many times the deviation.
    mean = Reduce(
               x, k, [](Vec v, Vec s) { return s + v; }, [](float f) { return f; }) /
           count;
    const Vec m = Vec::Set(mean);
    const float residual =
        Reduce(
            x, k, [m](Vec v, Vec s) { return s + (v - m); }, [mean](float f) { return f - mean; }) /
        count;
    const float square = Reduce(
                             x, k,
                             [m](Vec v, Vec s) {
                               const Vec d = v - m;
                               return Vec::MulAdd(d, d, s);
                             },
                             [mean](float f) { return (f - mean) * (f - mean); }) /
                         count;
    const float variance = square - residual * residual;
    // Not std::max: it would turn the NaN of overflowing squares into 0, and the row into numbers.
    rstd = ReciprocalDeviation(variance < 0.0f ? 0.0f : variance, norm.epsilon);
    // (x - mean - residual) * rstd, without rounding mean + residual back to one float.
    const Vec r = Vec::Set(rstd), shift = Vec::Set(-residual * rstd);
    const float tail_shift = -residual * rstd;
    int64_t i = 0;
    for (; i + kLanes <= k; i += kLanes) {
      Vec v = Vec::MulAdd(Vec::Load(x + i) - m, r, shift);
      if (norm.gamma) v = v * Vec::Load(norm.gamma + i);
      if (norm.beta) v = v + Vec::Load(norm.beta + i);
      v.Store(out + i);
    }
    for (; i < k; ++i) {
      float v = (x[i] - mean) * rstd + tail_shift;
      if (norm.gamma) v *= norm.gamma[i];
      if (norm.beta) v += norm.beta[i];
      out[i] = v;
    }
    return;
  }
  // RMSNorm. The square of a large float16 or bfloat16 value fits float32 up to 1.8e19.
  const float square =
      Reduce(
          x, k, [](Vec v, Vec s) { return Vec::MulAdd(v, v, s); }, [](float f) { return f * f; }) /
      count;
  rstd = ReciprocalDeviation(square, norm.epsilon);
  const Vec r = Vec::Set(rstd);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Vec v = Vec::Load(x + i) * r;
    if (norm.gamma) v = v * Vec::Load(norm.gamma + i);
    v.Store(out + i);
  }
  for (; i < k; ++i) {
    float v = x[i] * rstd;
    if (norm.gamma) v *= norm.gamma[i];
    out[i] = v;
  }
}

void QuantizeRow(float* x, int64_t k) {
  Vec m = Vec::Zero();
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) m = Vec::Max(m, Vec::Abs(Vec::Load(x + i)));
  float largest = m.Max();
  for (; i < k; ++i) largest = std::max(largest, std::fabs(x[i]));
  if (!(largest > 0.0f) || !std::isfinite(largest))
    return;  // all zero; or not finite, and the products will show it
  const float scale = largest / 127.0f;
  if (scale == 0.0f) return;  // largest is subnormal: nothing smaller to round to
  const Vec s = Vec::Set(scale), inverse = Vec::Set(127.0f / largest);
  if (!std::isfinite(127.0f / largest)) return;
  for (i = 0; i + kLanes <= k; i += kLanes) (Vec::Round(Vec::Load(x + i) * inverse) * s).Store(x + i);
  for (; i < k; ++i) x[i] = std::nearbyint(x[i] * (127.0f / largest)) * scale;
}

// --- matrix product
// ------------------------------------------------------------------------------------------------

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

constexpr Kernels kKernels = {ToFloat, FromFloat, Normalize, QuantizeRow, MultiplyStreamed, MultiplyWidened};

}  // namespace
}  // namespace qkvgemm::cpu
