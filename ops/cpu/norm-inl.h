// LayerNorm and RMSNorm of a row, and its digits in int8. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/cpu/elements-inl.h"
#include "ops/cpu/kernels.h"

namespace qkvgemm::cpu {
namespace {

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

// May miss a NaN.
float LargestOf(const float* x, int64_t k) {
  Vec m = Vec::Zero();
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) m = Vec::Max(m, Vec::Abs(Vec::Load(x + i)));
  float largest = m.Max();
  for (; i < k; ++i) largest = std::max(largest, std::fabs(x[i]));
  return largest;
}

// steps / largest, or 0 where that is no number to multiply with: rows of zeros, or not finite, or so small
// that there is nothing smaller to round to.
float InverseStep(float largest, float steps) {
  const float inverse = steps / largest;
  return largest > 0.0f && std::isfinite(largest) && std::isfinite(inverse) ? inverse : 0.0f;
}

void RoundRow(float* x, int64_t k) {
  const float largest = LargestOf(x, k), inverse = InverseStep(largest, 127.0f);
  if (inverse == 0.0f) return;  // not finite: the products will show it
  const float step = largest / 127.0f;
  const Vec s = Vec::Set(step), f = Vec::Set(inverse);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) (Vec::Round(Vec::Load(x + i) * f) * s).Store(x + i);
  for (; i < k; ++i) x[i] = std::nearbyint(x[i] * inverse) * step;
}

float SplitRow(const float* x, int64_t k, int digits, int8_t* q) {
  float steps = 127.0f;
  for (int d = 1; d < digits; ++d) steps *= 256.0f;
  const float largest = LargestOf(x, k), inverse = InverseStep(largest, steps);
  // Integers cannot show what is not finite; the step does.
  const Vec nothing = Vec::Zero();
  const float finite = Reduce(
      x, k, [nothing](Vec v, Vec s) { return Vec::MulAdd(v, nothing, s); }, [](float f) { return f * 0.0f; });
  if (finite != 0.0f || inverse == 0.0f) {
    std::fill(q, q + digits * k, int8_t{0});
    return finite != 0.0f ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
  }
  const Vec f = Vec::Set(inverse);
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    Lanes rest = Lanes::Round(Vec::Load(x + i) * f);
    for (int d = digits - 1; d > 0; --d) {
      const Lanes digit = rest.Left<24>().SignedRight<24>();
      digit.StoreInt8(q + d * k + i);
      rest = (rest - digit).SignedRight<8>();
    }
    rest.StoreInt8(q + i);
  }
  for (; i < k; ++i) {
    int32_t rest = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
    for (int d = digits - 1; d > 0; --d) {
      q[d * k + i] = static_cast<int8_t>(rest);
      rest = (rest - q[d * k + i]) >> 8;
    }
    q[i] = static_cast<int8_t>(rest);
  }
  return largest / steps;
}

}  // namespace
}  // namespace qkvgemm::cpu
