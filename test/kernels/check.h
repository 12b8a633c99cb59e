// Every element of a case's outputs against the formula in double, for the kernels of any device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "test/kernels/support.h"

namespace qkvgemm::cpu::support {

inline double RoundingOf(DType t) {
  return t == DType::kFloat ? 0x1p-24 : t == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
}
inline double SmallestOf(DType t) { return t == DType::kFloat16 ? 0x1p-25 : 0x1p-126; }

inline std::string Describe(const Case& c) {
  auto n = [](auto v) { return std::to_string(static_cast<long long>(v)); };
  return "m=" + n(c.p.m) + " k=" + n(c.p.k) + " n=" + n(c.p.n) + " t=" + n(c.p.t) + " tw=" + n(c.p.tw) +
         " norm=" + n(c.p.norm) + " transposed=" + n(c.p.transposed) + " splits=" + n(c.p.num_splits) +
         " layout=" + n(c.p.scale_layout) + " zero_point=" + n(c.p.has_zero_point) +
         " groups=" + n(c.p.scale_groups) + " block=" + n(c.p.scale_block) +
         " quant=" + n(c.p.activation_quant);
}

// N columns in 1, 2 or 3 uneven parts.
inline std::vector<int64_t> Split(int64_t n, int parts) {
  if (parts <= 1 || n < parts) return {n};
  if (parts == 2) return {n / 3, n - n / 3};
  return {n - 2 * (n / 4) - (n > 8 ? 1 : 0), n / 4, n / 4 + (n > 8 ? 1 : 0)};
}

// `operand_rounding`: relative error of each product's operands where a kernel rounds them to T (0: none).
template <typename FailFn>
void CheckOutputs(Case& c, bool has_norm, double operand_rounding, const std::string& name, int64_t* elements,
                  const FailFn& fail) {
  // Bound per element, with u = 2^-24: the statistics and the row's scaling cost a few u relative to the
  // row's largest value before the mean is removed; a dot product of K terms in any order costs at most K u
  // times the sum of magnitudes; in practice errors add like a random walk, hence the root, with a factor
  // that fresh inputs stay under.
  const double u = 0x1p-24;
  const double terms = 4.0 * std::sqrt(static_cast<double>(c.p.k)) + 16.0;
  for (int64_t r = 0; r < c.p.m; ++r) {
    std::vector<double> row = c.NormRow(r);
    double largest = 0;
    for (double v : row) largest = std::max(largest, std::fabs(v));
    // Error of one normalised element: a few roundings of the row's statistics and of its own scaling.
    const double element = c.p.norm == NormType::kNone ? 0 : 16 * u * largest;
    if (has_norm) {
      for (int64_t k = 0; k < c.p.k; ++k, ++*elements) {
        const double got = c.norm.Get(r * c.p.k + k);
        const double bound = element + RoundingOf(c.p.t) * std::fabs(row[k]) + SmallestOf(c.p.t);
        if (!(std::fabs(got - row[k]) <= bound))
          fail(name + " norm[" + std::to_string(r) + "," + std::to_string(k) + "] = " + std::to_string(got) +
               ", expected " + std::to_string(row[k]) + " +- " + std::to_string(bound));
      }
    }
    double step =
        0;  // activation_quant: the reference rounds the same way, but a tie may fall to the other side
    if (c.p.activation_quant && largest > 0) {
      step = largest / 127.0;
      for (double& v : row) v = std::nearbyint(v / step) * step;
    }
    int64_t column = 0;
    for (size_t s = 0; s < c.splits.size(); ++s) {
      for (int64_t j = 0; j < c.splits[s]; ++j, ++column, ++*elements) {
        double sum = 0, magnitude = 0, widest = 0, squares = 0;
        for (int64_t k = 0; k < c.p.k; ++k) {
          const double wt = c.Weight(k, column);
          sum += row[k] * wt;
          magnitude += std::fabs(row[k] * wt);
          squares += row[k] * wt * row[k] * wt;
          widest = std::max(widest, std::fabs(wt));
        }
        const double bias = c.bias ? c.c.Get(column) : 0;
        const double expected = sum + bias;
        double bound = terms * u * (magnitude + std::fabs(bias)) +
                       element * std::sqrt(static_cast<double>(c.p.k)) * widest +
                       RoundingOf(c.p.t) * std::fabs(expected) + SmallestOf(c.p.t);
        bound += 6 * operand_rounding * std::sqrt(squares);  // independent roundings: six deviations
        if (step > 0) bound += 2 * step * widest;  // two ties in a row of random values are improbable
        const double got = c.y[s].Get(r * c.splits[s] + j);
        if (!(std::fabs(got - expected) <= bound))
          fail(name + " y" + std::to_string(s) + "[" + std::to_string(r) + "," + std::to_string(j) +
               "] = " + std::to_string(got) + ", expected " + std::to_string(expected) + " +- " +
               std::to_string(bound));
      }
    }
  }
}

}  // namespace qkvgemm::cpu::support
