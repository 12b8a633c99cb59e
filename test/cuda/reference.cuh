// The formula in double on the device, as plainly as it is written, and what the unfused form in T makes of
// it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "ops/problem.h"
#include "test/cuda/device.cuh"
#include "test/kernels/bound.h"
#include "test/kernels/case.h"

namespace qkvgemm::support {

__device__ inline double Element(const void* data, DType type, int64_t i) {
  switch (type) {
    case DType::kFloat:
      return static_cast<const float*>(data)[i];
    case DType::kFloat16:
      return __half2float(static_cast<const __half*>(data)[i]);
    case DType::kBFloat16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::kInt8:
      return static_cast<const int8_t*>(data)[i];
  }
  return NAN;
}

__device__ inline double Rounded(double value, DType type) {
  if (type == DType::kFloat16) return __half2float(__double2half(value));
  if (type == DType::kBFloat16) return __bfloat162float(__double2bfloat16(value));
  return static_cast<float>(value);
}

// An operand of a product as the unfused form rounds it: float32 to TensorFloat32 (nearest, ties away).
__device__ inline float RoundedOperand(double value, DType type) {
  const auto rounded = static_cast<float>(Rounded(value, type));
  if (type != DType::kFloat || !isfinite(rounded)) return rounded;
  int exponent;
  const float mantissa = frexpf(rounded, &exponent);  // in [1/2, 1)
  return ldexpf(roundf(ldexpf(mantissa, 11)), exponent - 11);
}

struct Reference {
  Problem p;   // its splits are host memory
  Operands o;  // device pointers; of the outputs nothing is used
  // [m, k]: norm(x), the same in steps of int8 where rows are quantised, what `mean_last` multiplies by W
  // instead, and norm(x) rounded as an operand
  double *row, *quantised, *input;
  float* unfused_row;
  uint8_t* near_tie;  // [m, k]: whether a row's value is near a tie between two quantised ones
  // [k, n]: W, and W rounded as an operand
  double* weight;
  float* unfused_weight;
  double *largest, *step;  // [m]
  double *widest, *bias;   // [n]
  Sums* sums;              // [m, n]
  double* unfused;         // [m, n]: rows and W rounded, sums in float32, the result in T
};

struct ReferenceRow : Reference {
  __device__ void operator()(int64_t r) const {
    const double count = static_cast<double>(p.k);
    double mean = 0, square = 0;
    if (p.norm == NormType::kLayerNorm)
      for (int64_t k = 0; k < p.k; ++k) mean += Element(o.input, p.t, r * p.k + k) / count;
    for (int64_t k = 0; k < p.k; ++k) {
      const double d = Element(o.input, p.t, r * p.k + k) - mean;
      square += d * d / count;
    }
    const double deviation = std::sqrt(square + static_cast<double>(p.epsilon));
    double most = 0;
    for (int64_t k = 0; k < p.k; ++k) {
      const double x = Element(o.input, p.t, r * p.k + k);
      double v = x, scale = 1;
      if (p.norm != NormType::kNone) {
        if (o.gamma) scale = Element(o.gamma, p.gamma_type, k);
        scale = deviation == 0 ? 0 : scale / deviation;
        v = (x - mean) * scale;
        if (o.beta) v += Element(o.beta, p.beta_type, k);
      }
      row[r * p.k + k] = v;
      input[r * p.k + k] = (std::fabs(x) + std::fabs(mean)) * std::fabs(scale);
      unfused_row[r * p.k + k] = RoundedOperand(v, p.t);
      most = std::fmax(most, std::fabs(v));
    }
    largest[r] = most;
    const double s = p.activation_quant ? most / 127.0 : 0;
    step[r] = s;
    for (int64_t i = r * p.k; i < (r + 1) * p.k; ++i) {
      quantised[i] = s > 0 ? std::nearbyint(row[i] / s) * s : row[i];
      near_tie[i] = s > 0 && NearTie(row[i], s);
    }
  }
};

struct ReferenceWeight : Reference {
  __device__ void operator()(int64_t i) const {
    const int64_t k = i / p.n, n = i % p.n;
    double w = Element(o.weight, p.tw, p.transposed ? n * p.k + k : i);
    if (p.tw == DType::kInt8) {
      const bool blocks = p.scale_layout == ScaleLayout::kBlocks;
      const int64_t s = blocks ? k / p.scale_block * p.n + n : n / (p.n / p.scale_groups);
      if (o.zero_point) w -= Element(o.zero_point, DType::kInt8, s);
      w *= Element(o.scale, p.scale_type, s);
    }
    weight[i] = w;
    unfused_weight[i] = RoundedOperand(w, p.t);
  }
};

struct ReferenceColumn : Reference {
  __device__ void operator()(int64_t n) const {
    double most = 0;
    for (int64_t k = 0; k < p.k; ++k) most = std::fmax(most, std::fabs(weight[k * p.n + n]));
    widest[n] = most;
    bias[n] = o.bias ? Element(o.bias, p.bias_type, n) : 0;
  }
};

struct ReferenceProduct : Reference {
  __device__ void operator()(int64_t i) const {
    const int64_t r = i / p.n, n = i % p.n;
    Sums s;
    float plain = 0;
    for (int64_t k = 0; k < p.k; ++k) {
      const double w = weight[k * p.n + n], product = quantised[r * p.k + k] * w;
      s.sum += product;
      s.magnitude += std::fabs(product);
      s.input += input[r * p.k + k] * std::fabs(w);
      s.squares += product * product;
      s.weights += quantised[r * p.k + k] * (unfused_weight[k * p.n + n] - w);
      if (near_tie[r * p.k + k]) s.ties += std::fabs(w);
      plain = fmaf(unfused_row[r * p.k + k], unfused_weight[k * p.n + n], plain);
    }
    sums[i] = s;
    unfused[i] = Rounded(plain + bias[n], p.t);
  }
};

// What the checks found. Errors are summed apart for each kind of row.
struct Report {
  unsigned long long failures, first;  // the first failing element, in no particular order of the outputs
  unsigned long long
      worst;  // bits of the largest error relative to its bound, less the last rounding in both
  unsigned long long different, changed;
  struct {
    double count, fused, unfused, expected;  // squared errors
  } kind[kRowKinds];
  double got, wanted, bound;  // of one element
};

struct CheckNorm : Reference {
  Report* report;
  const void* norm;
  __device__ void Evaluate(int64_t i, double* got, double* wanted, double* bound) const {
    *got = Element(norm, p.t, i);
    *wanted = row[i];
    *bound = NormBound(p.t, row[i], largest[i / p.k]);
  }
  __device__ int64_t Row(int64_t i) const { return i / p.k; }
  __device__ void Note(int64_t, double, double) const {}
};

struct CheckOutput : Reference {
  Report* report;
  const void* y;
  int64_t first, width;  // the split's columns
  Arithmetic arithmetic;
  const uint8_t* kinds;  // RowKind of each row
  __device__ int64_t Index(int64_t i) const { return i / width * p.n + first + i % width; }
  __device__ void Evaluate(int64_t i, double* got, double* wanted, double* bound) const {
    const int64_t at = Index(i), r = at / p.n, n = at % p.n;
    const double scaled = p.norm == NormType::kNone ? 0 : largest[r];
    *got = Element(y, p.t, i);
    *wanted = sums[at].sum + (arithmetic.weights_nearest ? sums[at].weights : 0) + bias[n];
    *bound = OutputBound(p, arithmetic, sums[at], bias[n], scaled, widest[n], step[r]);
  }
  // `expected`: a relative rounding error has the variance u^2 / 6 where mantissas are spread evenly; the
  // unfused form rounds each normalised element once and the result once. In TensorFloat32 it rounds every
  // element, and those of W unless they are halves.
  __device__ void Note(int64_t i, double got, double) const {
    const int64_t at = Index(i);
    const double wanted = sums[at].sum + bias[at % p.n];  // by the formula
    if (std::isinf(got) || std::isinf(unfused[at])) return;
    auto& k = report->kind[kinds[i / width]];
    const double u = RoundingOf(p.t), e = got - wanted, f = unfused[at] - wanted;
    const bool tf32 = p.t == DType::kFloat;
    const double rounded = !tf32                                           ? p.norm != NormType::kNone
                           : p.tw == DType::kFloat || p.tw == DType::kInt8 ? 2
                                                                           : 1;
    const double operand = tf32 ? kTf32Rounding : u,
                 operands = rounded * operand * operand * sums[at].squares;
    atomicAdd(&k.count, 1.0);
    atomicAdd(&k.fused, e * e);
    atomicAdd(&k.unfused, f * f);
    atomicAdd(&k.expected, (operands + u * u * wanted * wanted) / 6);
  }
};

template <typename Check>
struct Checked {
  Check check;
  __device__ void operator()(int64_t i) const {
    double got, wanted, bound;
    check.Evaluate(i, &got, &wanted, &bound);
    check.Note(i, got, wanted);
    if (Within(check.p.t, got, wanted, bound)) {
      // The last rounding alone may take all that is allowed to it, and says nothing.
      const double rounding = RoundingOf(check.p.t) * std::fabs(wanted), error = std::fabs(got - wanted);
      if (error > rounding && bound > rounding && !std::isinf(got))
        atomicMax(&check.report->worst, static_cast<unsigned long long>(
                                            __double_as_longlong((error - rounding) / (bound - rounding))));
      return;
    }
    atomicAdd(&check.report->failures, 1ull);
    atomicMin(&check.report->first, static_cast<unsigned long long>(i));
  }
};

template <typename Check>
struct Detail {
  Check check;
  __device__ void operator()(int64_t) const {
    Report& r = *check.report;
    check.Evaluate(static_cast<int64_t>(r.first), &r.got, &r.wanted, &r.bound);
  }
};

}  // namespace qkvgemm::support
