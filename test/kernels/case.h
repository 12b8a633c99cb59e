// A problem with random operands of any type and its formula in double, for kernels of any device.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

#include "ops/cpu/convert.h"
#include "ops/problem.h"

namespace qkvgemm::support {

// A tensor at an address that is aligned to its element and nothing more.
class Tensor {
 public:
  Tensor() = default;
  Tensor(DType type, int64_t count)
      : type_(type), count_(count), bytes_(static_cast<size_t>(count) * SizeOf(type) + 64) {
    Poison();
  }
  char* Data() {
    const auto address = reinterpret_cast<uintptr_t>(bytes_.data());
    return bytes_.data() + (64 - address % 64) % 64 + SizeOf(type_);
  }
  void Poison() { std::memset(bytes_.data(), 0xff, bytes_.size()); }  // NaN in all three float types
  int64_t Count() const { return count_; }
  double Get(int64_t i) {
    const char* at = Data() + i * static_cast<int64_t>(SizeOf(type_));
    uint16_t h;
    float f;
    switch (type_) {
      case DType::kFloat:
        std::memcpy(&f, at, 4);
        return f;
      case DType::kFloat16:
        std::memcpy(&h, at, 2);
        return cpu::Float16ToFloat(h);
      case DType::kBFloat16:
        std::memcpy(&h, at, 2);
        return cpu::BFloat16ToFloat(h);
      case DType::kInt8:
        return static_cast<int8_t>(*at);
    }
    return NAN;
  }
  void Set(int64_t i, double value) {
    char* at = Data() + i * static_cast<int64_t>(SizeOf(type_));
    const float f = static_cast<float>(value);
    uint16_t h;
    switch (type_) {
      case DType::kFloat:
        std::memcpy(at, &f, 4);
        return;
      case DType::kFloat16:
        h = cpu::FloatToFloat16(f);
        std::memcpy(at, &h, 2);
        return;
      case DType::kBFloat16:
        h = cpu::FloatToBFloat16(f);
        std::memcpy(at, &h, 2);
        return;
      case DType::kInt8:
        *at = static_cast<char>(static_cast<int8_t>(value));
        return;
    }
  }

 private:
  DType type_ = DType::kFloat;
  int64_t count_ = 0;
  std::vector<char> bytes_ = std::vector<char>(64);
};

// What the input and gamma are like.
enum class Values {
  kMixed,        // rows of each RowKind
  kPlain,        // normal values, no zero row, no outlier
  kLarge,        // near the largest values of float16, in every other row about a mean
  kTinyGamma,    // gamma about 1e-4
  kHugeGamma,    // gamma about 1e3
  kSpreadGamma,  // gamma from 1e-4 to 1e3, of either sign
  kTies          // multiples of 1/256 and 127/32 the largest: without gamma an eighth are ties of int8
};
enum RowKind { kPlainRow, kLargeMeanRow, kOutlierRow, kZeroRow, kRowKinds };

// One problem with its operands. Set the fields of `p`, then Fill, then Run and Check.
struct Case {
  Problem p;
  Values values = Values::kMixed;
  bool gamma = true, beta = true, bias = true, emit_norm = false;
  std::vector<int64_t> splits;
  Tensor x, w, g, b, c, s, z, norm;
  std::vector<Tensor> y;
  std::vector<void*> y_pointers;

  void Fill(std::mt19937& random) {
    p.splits = splits.data();
    p.num_splits = static_cast<int64_t>(splits.size());
    std::normal_distribution<double> normal;
    auto fill = [&](Tensor& t, DType type, int64_t count, double scale, double offset) {
      t = Tensor(type, count);
      for (int64_t i = 0; i < count; ++i) t.Set(i, offset + scale * normal(random));
    };
    fill(x, p.t, p.m * p.k, 1.0, 0.3);
    for (int64_t r = 0; r < p.m; ++r) {
      const RowKind kind = KindOf(r);
      for (int64_t i = r * p.k; i < (r + 1) * p.k; ++i) {
        if (kind == kZeroRow) x.Set(i, 0.0);
        if (values == Values::kLarge) {
          const double value = kind == kLargeMeanRow ? 60000.0 + 1500.0 * x.Get(i) : 20000.0 * x.Get(i);
          x.Set(i, std::min(65000.0, std::max(-65000.0, value)));
        } else if (kind == kLargeMeanRow) {
          x.Set(i, 64.0 + x.Get(i));
        }
      }
      // Of two outliers one is among the values that statistics take their shift from.
      if (kind == kOutlierRow) x.Set(r * p.k + (r % 2 == 0 ? p.k / 2 : 2), 200.0);
      if (values == Values::kTies) {
        for (int64_t i = r * p.k; i < (r + 1) * p.k; ++i)
          x.Set(i, std::clamp(std::round(256 * x.Get(i)) / 256, -3.5, 3.5));
        x.Set(r * p.k + p.k / 2, 127.0 / 32);
      }
    }
    if (p.tw == DType::kInt8) {
      w = Tensor(p.tw, p.k * p.n);
      for (int64_t i = 0; i < p.k * p.n; ++i)
        w.Set(i, static_cast<double>(static_cast<int64_t>(random() % 256) - 128));
      const int64_t scales =
          p.scale_layout == ScaleLayout::kBlocks ? p.k / p.scale_block * p.n : p.scale_groups;
      fill(s, p.scale_type, scales, 0.001, 0.01);
      z = Tensor(DType::kInt8, scales);
      for (int64_t i = 0; i < scales; ++i)
        z.Set(i, static_cast<double>(static_cast<int64_t>(random() % 256) - 128));
    } else {
      fill(w, p.tw, p.k * p.n, 0.05, 0.0);
    }
    fill(g, p.gamma_type, p.k, 0.2, 1.0);
    if (values == Values::kTinyGamma || values == Values::kHugeGamma)
      for (int64_t k = 0; k < p.k; ++k) g.Set(k, g.Get(k) * (values == Values::kTinyGamma ? 1e-4 : 1e3));
    if (values == Values::kSpreadGamma) {
      std::uniform_real_distribution<double> exponent(-4.0, 3.0);
      for (int64_t k = 0; k < p.k; ++k)
        g.Set(k, (random() % 2 ? 1.0 : -1.0) * std::pow(10.0, exponent(random)));
    }
    fill(b, p.beta_type, p.k, 0.2, 0.0);
    fill(c, p.bias_type, p.n, 0.5, 0.0);
    norm = Tensor(p.t, p.m * p.k);
    y.clear();
    y_pointers.clear();
    for (int64_t width : splits) y.emplace_back(p.t, p.m * width);
    for (Tensor& t : y) y_pointers.push_back(t.Data());
  }

  RowKind KindOf(int64_t row) const {
    if (values == Values::kLarge) return row % 2 == 1 ? kLargeMeanRow : kPlainRow;
    if (values != Values::kMixed) return kPlainRow;
    if (row % 5 == 3) return kZeroRow;
    if (row % 5 == 1) return kLargeMeanRow;
    return p.k > 2 && row % 5 == 2 ? kOutlierRow : kPlainRow;
  }

  Operands GetOperands() {
    Operands o;
    const bool normed = p.norm != NormType::kNone;
    o.input = x.Data();
    o.weight = w.Data();
    o.gamma = normed && gamma ? g.Data() : nullptr;
    o.beta = p.norm == NormType::kLayerNorm && beta ? b.Data() : nullptr;
    o.bias = bias ? c.Data() : nullptr;
    o.scale = p.tw == DType::kInt8 ? s.Data() : nullptr;
    o.zero_point = p.has_zero_point ? z.Data() : nullptr;
    o.norm = normed && emit_norm ? norm.Data() : nullptr;
    o.y = y_pointers.data();
    return o;
  }

  void Poison() {
    for (Tensor& t : y) t.Poison();
    norm.Poison();
  }

  std::vector<char> OutputBytes() {
    std::vector<char> bytes;
    for (Tensor& t : y)
      bytes.insert(bytes.end(), t.Data(), t.Data() + t.Count() * static_cast<int64_t>(SizeOf(p.t)));
    return bytes;
  }

  double Weight(int64_t k, int64_t n) {
    double q = w.Get(p.transposed ? n * p.k + k : k * p.n + n);
    if (p.tw != DType::kInt8) return q;
    const int64_t i =
        p.scale_layout == ScaleLayout::kBlocks ? k / p.scale_block * p.n + n : n / (p.n / p.scale_groups);
    if (p.has_zero_point) q -= z.Get(i);
    return q * s.Get(i);
  }

  // The formula, in double.
  std::vector<double> NormRow(int64_t row) {
    std::vector<double> v(static_cast<size_t>(p.k));
    for (int64_t k = 0; k < p.k; ++k) v[k] = x.Get(row * p.k + k);
    if (p.norm == NormType::kNone) return v;
    double mean = 0, square = 0;
    if (p.norm == NormType::kLayerNorm)
      for (double e : v) mean += e / static_cast<double>(p.k);
    for (double e : v) square += (e - mean) * (e - mean) / static_cast<double>(p.k);
    const double d = std::sqrt(square + static_cast<double>(p.epsilon));
    for (int64_t k = 0; k < p.k; ++k) {
      v[k] = d == 0 ? 0 : (v[k] - mean) / d;
      if (gamma) v[k] *= g.Get(k);
      if (p.norm == NormType::kLayerNorm && beta) v[k] += b.Get(k);
    }
    return v;
  }
};

}  // namespace qkvgemm::support
