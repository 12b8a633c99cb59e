// One float at a time: the portable path, and the reference that the others are compared with.
#pragma once

#include <cmath>
#include <cstdint>

#include "ops/cpu/convert.h"

namespace qkvgemm::cpu {
namespace {

struct Vec {
  float v;
  static constexpr int kLanes = 1;
  static Vec Zero() { return {0.0f}; }
  static Vec Set(float f) { return {f}; }
  static Vec Load(const float* p) { return {FloatOf(BitsAt(p))}; }
  static Vec LoadBFloat16(const uint16_t* p) { return {BFloat16ToFloat(HalfAt(p))}; }
  static Vec LoadFloat16(const uint16_t* p) { return {Float16ToFloat(HalfAt(p))}; }
  static Vec LoadInt8(const int8_t* p) { return {static_cast<float>(*p)}; }
  void Store(float* p) const { std::memcpy(p, &v, sizeof v); }
  void StoreBFloat16(uint16_t* p) const { PutHalf(p, FloatToBFloat16(v)); }
  void StoreFloat16(uint16_t* p) const { PutHalf(p, FloatToFloat16(v)); }
  friend Vec operator+(Vec a, Vec b) { return {a.v + b.v}; }
  friend Vec operator-(Vec a, Vec b) { return {a.v - b.v}; }
  friend Vec operator*(Vec a, Vec b) { return {a.v * b.v}; }
  static Vec MulAdd(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
  // NaN in b wins, so that a NaN in the data is not lost.
  static Vec Max(Vec a, Vec b) { return {a.v > b.v ? a.v : b.v}; }
  static Vec Abs(Vec a) { return {std::fabs(a.v)}; }
  static Vec Round(Vec a) { return {std::nearbyint(a.v)}; }
  float Sum() const { return v; }
  float Max() const { return v; }

 private:
  static uint32_t BitsAt(const float* p) {
    uint32_t u;
    std::memcpy(&u, p, sizeof u);
    return u;
  }
  static uint16_t HalfAt(const uint16_t* p) {
    uint16_t h;
    std::memcpy(&h, p, sizeof h);
    return h;
  }
  static void PutHalf(uint16_t* p, uint16_t h) { std::memcpy(p, &h, sizeof h); }
};

// A lane of 32 bits: an integer, or two bfloat16 or four int8 of consecutive k.
struct Lanes {
  uint32_t v;
  static Lanes Zero() { return {0}; }
  static Lanes Set(uint32_t u) { return {u}; }
  static Lanes Load(const void* p) {
    uint32_t u;
    std::memcpy(&u, p, sizeof u);
    return {u};
  }
  static Lanes Round(Vec a) { return {static_cast<uint32_t>(static_cast<int32_t>(std::nearbyint(a.v)))}; }
  void Store(void* p) const { std::memcpy(p, &v, sizeof v); }
  void StoreInt8(int8_t* p) const { *p = static_cast<int8_t>(v); }
  Vec ToFloat() const { return {static_cast<float>(static_cast<int32_t>(v))}; }
  Vec AsFloat() const { return {FloatOf(v)}; }
  static Lanes OfFloat(Vec a) { return {BitsOf(a.v)}; }
  template <int kBits>
  Lanes Left() const {
    return {v << kBits};
  }
  template <int kBits>
  Lanes Right() const {  // zeros come in
    return {v >> kBits};
  }
  template <int kBits>
  Lanes SignedRight() const {
    return {static_cast<uint32_t>(static_cast<int32_t>(v) >> kBits)};
  }
  friend Lanes operator&(Lanes a, Lanes b) { return {a.v & b.v}; }
  friend Lanes operator|(Lanes a, Lanes b) { return {a.v | b.v}; }
  friend Lanes operator^(Lanes a, Lanes b) { return {a.v ^ b.v}; }
  friend Lanes operator+(Lanes a, Lanes b) { return {a.v + b.v}; }
  friend Lanes operator-(Lanes a, Lanes b) { return {a.v - b.v}; }
  friend Lanes operator*(Lanes a, Lanes b) { return {a.v * b.v}; }
};

}  // namespace
}  // namespace qkvgemm::cpu
