// How far a result may lie from the formula: the same bounds for the kernels of every device, on host and
// device.
#pragma once

#include <cmath>

#include "ops/problem.h"

#ifdef __CUDACC__
#define QKVGEMM_HOST_DEVICE __host__ __device__
#else
#define QKVGEMM_HOST_DEVICE
#endif

namespace qkvgemm::support {

constexpr double kFloatRounding = 0x1p-24;
constexpr double kTf32Rounding = 0x1p-11;
constexpr double kTf32RemainderRounding = 0x1p-22;  // where products with the remainders are added

QKVGEMM_HOST_DEVICE inline double RoundingOf(DType t) {
  return t == DType::kFloat ? kFloatRounding : t == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}
QKVGEMM_HOST_DEVICE inline double SmallestOf(DType t) { return t == DType::kFloat16 ? 0x1p-25 : 0x1p-126; }
// What rounds to infinity.
QKVGEMM_HOST_DEVICE inline double OverflowOf(DType t) {
  return t == DType::kFloat16 ? 65520.0 : 0x1.ffffffp127;
}

// How a kernel computes the product.
struct Arithmetic {
  double operand = 0;      // relative error of each product's operands where a kernel rounds them (0: none)
  bool matrix = false;     // sums on matrix instructions
  bool mean_last = false;  // sums run over the input as it is; the mean's part is subtracted from them
  bool rows_rounded = false;  // operands may be subnormal in T
  // W is rounded to the nearest, as the reference rounds it, which then says what that changes. It need not
  // look random: of int8 times a scale that is nearly a multiple of the type's steps all errors are alike.
  bool weights_nearest = false;
  double fixed_point = 0;  // rows are rounded to multiples of twice this of their largest value (0: not)
};

// One dot product in double.
struct Sums {
  double sum = 0;        // of norm(x) * w
  double magnitude = 0;  // of |norm(x) * w|
  double input = 0;      // of |x / deviation * gamma * w|: what `mean_last` sums
  double squares = 0;    // of (norm(x) * w)^2
  double row = 0;        // the row's largest |norm(x)|
  double weights = 0;    // of norm(x) times what w changes by where it is rounded as an operand
  double ties = 0;       // of |w| where norm(x) is near a tie between two quantised values
};

// A dot product of K terms in any order costs at most K u times the sum of magnitudes, with u = 2^-24; in
// practice errors add like a random walk, hence the roots, with factors that fresh inputs stay under.
//
// Matrix instructions form exact products, shift the 8 or 16 of a step and the sum so far to the largest
// exponent among them, and cut off what falls below about 24 bits (M. Fasi, N. J. Higham, M. Mikaitis, S.
// Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021). Where signs are mixed a sum of K terms
// is near magnitude / sqrt(K), so that cutting the sum K / 8 times towards zero adds up to about sqrt(K) / 8
// u magnitude, and cutting K products, whose signs are mixed, to about u magnitude. The bound is four times
// the first and eight times the second. Of TensorFloat32 a step may have 4 products, for which twice the
// first is left.
//
// Arm's products of bfloat16 add two and then the sum, and round both times to odd: an error of up to 2 u of
// the result, evenly to both sides. In K / 2 additions to the sum that is sqrt(2) times the walk of K
// roundings to nearest, which is off by less than the factors' room: partial sums are far below the
// magnitude.
QKVGEMM_HOST_DEVICE inline double AccumulationBound(double k, const Arithmetic& a) {
  return kFloatRounding * (a.matrix ? 0.5 * std::sqrt(k) + 8.0 : 4.0 * std::sqrt(k) + 16.0);
}

// Error of one normalised element: a few roundings of the row's statistics and of its own scaling, relative
// to the row's largest value. `largest` is 0 where nothing is normalised.
QKVGEMM_HOST_DEVICE inline double ElementBound(double largest) { return 16 * kFloatRounding * largest; }

QKVGEMM_HOST_DEVICE inline double NormBound(DType t, double expected, double largest) {
  return ElementBound(largest) + RoundingOf(t) * std::fabs(expected) + SmallestOf(t);
}

// Quantised rows (activation_quant): the reference rounds the same way, but a value within its own error and
// its step's of a tie may fall to either side. There are few such values among random ones, and many where
// the row's largest value is 127 times a power of two and the others have few bits.
QKVGEMM_HOST_DEVICE inline bool NearTie(double value, double step) {
  const double steps = std::fabs(value / step);
  return std::fabs(steps - std::floor(steps) - 0.5) <= 127 * 2 * ElementBound(1.0);
}

// `widest`: the column's largest weight. `step`: distance of quantised values, else 0.
QKVGEMM_HOST_DEVICE inline double OutputBound(const Problem& p, const Arithmetic& a, const Sums& s,
                                              double bias, double largest, double widest, double step) {
  const double k = static_cast<double>(p.k), root = std::sqrt(k);
  const double expected = std::fabs(s.sum + bias);
  const double magnitude = a.mean_last ? s.input + s.magnitude : s.magnitude;
  double bound = AccumulationBound(k, a) * (magnitude + std::fabs(bias));
  bound += ElementBound(largest) * root * widest;
  bound += 6 * a.operand * std::sqrt(s.squares);  // independent roundings: six deviations
  if (a.rows_rounded) bound += 6 * SmallestOf(p.t) * root * widest;
  // Independent roundings again, by no more than all of them.
  bound += a.fixed_point * s.row * widest * (k < 36 ? k : 6 * root);
  bound += s.ties * step;
  return bound + RoundingOf(p.t) * (expected + bound) + SmallestOf(p.t);
}

// NaN is never within a bound; an infinity is where the formula's value rounds to it.
QKVGEMM_HOST_DEVICE inline bool Within(DType t, double got, double expected, double bound) {
  if (std::fabs(got - expected) <= bound) return true;
  return std::isinf(got) && (got > 0) == (expected > 0) && std::fabs(expected) + bound >= OverflowOf(t);
}

}  // namespace qkvgemm::support
