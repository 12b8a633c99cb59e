// Every element of a case's outputs against the formula in double, for the kernels of any device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "test/kernels/bound.h"
#include "test/kernels/case.h"

namespace qkvgemm::support {

inline std::string Describe(const Case& c) {
  auto n = [](auto v) { return std::to_string(static_cast<long long>(v)); };
  return "m=" + n(c.p.m) + " k=" + n(c.p.k) + " n=" + n(c.p.n) + " t=" + n(c.p.t) + " tw=" + n(c.p.tw) +
         " norm=" + n(c.p.norm) + " transposed=" + n(c.p.transposed) + " splits=" + n(c.p.num_splits) +
         " layout=" + n(c.p.scale_layout) + " zero_point=" + n(c.p.has_zero_point) +
         " groups=" + n(c.p.scale_groups) + " block=" + n(c.p.scale_block) +
         " quant=" + n(c.p.activation_quant);
}

// N columns in uneven parts.
inline std::vector<int64_t> Split(int64_t n, int parts) {
  if (parts <= 1 || n < parts) return {n};
  if (parts > 3) {
    std::vector<int64_t> widths;
    for (int64_t left = n; parts > 0; --parts) {
      widths.push_back(parts == 1 ? left : parts % 2 == 0 ? (left + parts) / parts : left / parts);
      left -= widths.back();
    }
    return widths;
  }
  if (parts == 2) return {n / 3, n - n / 3};
  return {n - 2 * (n / 4) - (n > 8 ? 1 : 0), n / 4, n / 4 + (n > 8 ? 1 : 0)};
}

// What one element of y is to be.
struct Expectation {
  double value;
  double bound;
};

// A normalised row as the formula has it, and how far its elements may be from it.
struct ExpectedRow {
  std::vector<double> row;
  double largest = 0;
  double step = 0;         // activation_quant: distance of quantised values
  std::vector<bool> ties;  // and which are near a tie of two

  ExpectedRow(Case& c, int64_t r) : row(c.NormRow(r)) {
    for (double v : row) largest = std::max(largest, std::fabs(v));
  }
  void Quantize() {
    step = largest / 127.0;
    if (step == 0) return;
    for (double& v : row) {
      ties.push_back(NearTie(v, step));
      v = std::nearbyint(v / step) * step;
    }
  }
};

inline Expectation Expect(Case& c, const ExpectedRow& expected, int64_t column,
                          const Arithmetic& arithmetic) {
  Sums sums;
  sums.row = expected.largest;
  double widest = 0;
  for (int64_t k = 0; k < c.p.k; ++k) {
    const double weight = c.Weight(k, column), product = expected.row[k] * weight;
    sums.sum += product;
    sums.magnitude += std::fabs(product);
    sums.squares += product * product;
    if (expected.step > 0 && expected.ties[static_cast<size_t>(k)]) sums.ties += std::fabs(weight);
    widest = std::max(widest, std::fabs(weight));
  }
  const double bias = c.bias ? c.c.Get(column) : 0;
  const double scaled = c.p.norm == NormType::kNone ? 0 : expected.largest;
  return {sums.sum + bias, OutputBound(c.p, arithmetic, sums, bias, scaled, widest, expected.step)};
}

inline Expectation Expect(Case& c, int64_t r, int64_t column, const Arithmetic& arithmetic) {
  ExpectedRow expected(c, r);
  if (c.p.activation_quant) expected.Quantize();
  return Expect(c, expected, column, arithmetic);
}

template <typename FailFn>
void CheckOutputs(Case& c, bool has_norm, const Arithmetic& arithmetic, const std::string& name,
                  int64_t* elements, const FailFn& fail) {
  const auto check = [&](const std::string& output, int64_t r, int64_t i, double got, double expected,
                         double bound) {
    ++*elements;
    if (!Within(c.p.t, got, expected, bound))
      fail(name + " " + output + "[" + std::to_string(r) + "," + std::to_string(i) + "] = " +
           std::to_string(got) + ", expected " + std::to_string(expected) + " +- " + std::to_string(bound));
  };
  for (int64_t r = 0; r < c.p.m; ++r) {
    ExpectedRow expected(c, r);
    if (has_norm)
      for (int64_t k = 0; k < c.p.k; ++k)
        check("norm", r, k, c.norm.Get(r * c.p.k + k), expected.row[k],
              NormBound(c.p.t, expected.row[k], expected.largest));
    if (c.p.activation_quant) expected.Quantize();
    int64_t column = 0;
    for (size_t s = 0; s < c.splits.size(); ++s) {
      std::string output(1, 'y');
      output += std::to_string(s);
      for (int64_t j = 0; j < c.splits[s]; ++j, ++column) {
        const Expectation element = Expect(c, expected, column, arithmetic);
        check(output, r, j, c.y[s].Get(r * c.splits[s] + j), element.value, element.bound);
      }
    }
  }
}

}  // namespace qkvgemm::support
