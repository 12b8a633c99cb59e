// Four floats at a time: NEON of 64-bit Arm.
#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "ops/cpu/convert.h"

namespace qkvgemm::cpu {
namespace {

struct Vec {
  float32x4_t v;
  static constexpr int kLanes = 4;
  static Vec Zero() { return {vdupq_n_f32(0.0f)}; }
  static Vec Set(float f) { return {vdupq_n_f32(f)}; }
  static Vec Load(const float* p) { return {vld1q_f32(p)}; }
  static Vec LoadBFloat16(const uint16_t* p) { return {vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16))}; }
  static Vec LoadFloat16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
  static Vec LoadInt8(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const int16x8_t words = vmovl_s8(vreinterpret_s8_s32(vdup_n_s32(four)));
    return {vcvtq_f32_s32(vmovl_s16(vget_low_s16(words)))};
  }
  void Store(float* p) const { vst1q_f32(p, v); }
  void StoreBFloat16(uint16_t* p) const {
    const uint32x4_t u = vreinterpretq_u32_f32(v), high = vshrq_n_u32(u, 16);
    const uint32x4_t odd = vandq_u32(high, vdupq_n_u32(1));
    const uint32x4_t even = vshrq_n_u32(vaddq_u32(vaddq_u32(u, odd), vdupq_n_u32(0x7fff)), 16);
    const uint32x4_t quiet = vorrq_u32(high, vdupq_n_u32(0x40));
    vst1_u16(p, vmovn_u32(vbslq_u32(vceqq_f32(v, v), even, quiet)));
  }
  void StoreFloat16(uint16_t* p) const { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(v))); }
  friend Vec operator+(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {vsubq_f32(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  static Vec MulAdd(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static Vec Max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }  // NaN in either wins
  static Vec Abs(Vec a) { return {vabsq_f32(a.v)}; }
  static Vec Round(Vec a) { return {vrndnq_f32(a.v)}; }
  float Sum() const { return vaddvq_f32(v); }
  float Max() const { return vmaxvq_f32(v); }
};

// Lanes of 32 bits: an integer, or two bfloat16 or four int8 of consecutive k.
struct Lanes {
  int32x4_t v;
  static Lanes Zero() { return {vdupq_n_s32(0)}; }
  static Lanes Set(uint32_t u) { return {vdupq_n_s32(static_cast<int32_t>(u))}; }
  static Lanes Load(const void* p) {
    return {vreinterpretq_s32_u8(vld1q_u8(static_cast<const uint8_t*>(p)))};
  }
  static Lanes Round(Vec a) { return {vcvtnq_s32_f32(a.v)}; }
  static Lanes OfFloat(Vec a) { return {vreinterpretq_s32_f32(a.v)}; }
  void Store(void* p) const { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_s32(v)); }
  void StoreInt8(int8_t* p) const {
    const int16x4_t words = vmovn_s32(v);
    const int8x8_t bytes = vmovn_s16(vcombine_s16(words, words));
    const int32_t four = vget_lane_s32(vreinterpret_s32_s8(bytes), 0);
    std::memcpy(p, &four, sizeof four);
  }
  Vec ToFloat() const { return {vcvtq_f32_s32(v)}; }
  Vec AsFloat() const { return {vreinterpretq_f32_s32(v)}; }
  template <int kBits>
  Lanes Left() const {
    return {vshlq_n_s32(v, kBits)};
  }
  template <int kBits>
  Lanes Right() const {  // zeros come in
    return {vreinterpretq_s32_u32(vshrq_n_u32(vreinterpretq_u32_s32(v), kBits))};
  }
  template <int kBits>
  Lanes SignedRight() const {
    return {vshrq_n_s32(v, kBits)};
  }
  friend Lanes operator&(Lanes a, Lanes b) { return {vandq_s32(a.v, b.v)}; }
  friend Lanes operator|(Lanes a, Lanes b) { return {vorrq_s32(a.v, b.v)}; }
  friend Lanes operator^(Lanes a, Lanes b) { return {veorq_s32(a.v, b.v)}; }
  friend Lanes operator+(Lanes a, Lanes b) { return {vaddq_s32(a.v, b.v)}; }
  friend Lanes operator-(Lanes a, Lanes b) { return {vsubq_s32(a.v, b.v)}; }
  friend Lanes operator*(Lanes a, Lanes b) { return {vmulq_s32(a.v, b.v)}; }
};

}  // namespace
}  // namespace qkvgemm::cpu
