// Sixteen floats at a time: AVX-512 F, BW, DQ, VL.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ops/cpu/convert.h"

namespace qkvgemm::cpu {
namespace {

struct Vec {
  __m512 v;
  static constexpr int kLanes = 16;
  static Vec Zero() { return {_mm512_setzero_ps()}; }
  static Vec Set(float f) { return {_mm512_set1_ps(f)}; }
  static Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec LoadBFloat16(const uint16_t* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
  }
  static Vec LoadFloat16(const uint16_t* p) {
    return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
  }
  static Vec LoadInt8(const int8_t* p) {
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  void Store(float* p) const { _mm512_storeu_ps(p, v); }
  void StoreBFloat16(uint16_t* p) const {
    const __m512i u = _mm512_castps_si512(v);
    const __m512i high = _mm512_srli_epi32(u, 16);
    const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
    const __m512i even =
        _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, odd), _mm512_set1_epi32(0x7fff)), 16);
    const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    const __m512i r = _mm512_mask_or_epi32(even, nan, high, _mm512_set1_epi32(0x40));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(r));
  }
  void StoreFloat16(uint16_t* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  // NaN in b wins (maxps returns its second operand).
  static Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
  static Vec Abs(Vec a) { return {_mm512_abs_ps(a.v)}; }
  static Vec Round(Vec a) {
    return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
  }
  float Sum() const { return _mm512_reduce_add_ps(v); }
  float Max() const { return _mm512_reduce_max_ps(v); }
};

// Lanes of 32 bits: an integer, or two bfloat16 or four int8 of consecutive k.
struct Lanes {
  // Not __m512i, whose elements are 64 bits: g++ keeps arrays of sums in memory where their elements and
  // those of an instruction differ.
  typedef int32_t Vector __attribute__((vector_size(64)));
  Vector v;
  Lanes() = default;
  Lanes(__m512i m) : v((Vector)m) {}
  operator __m512i() const { return (__m512i)v; }
  static Lanes Zero() { return _mm512_setzero_si512(); }
  static Lanes Set(uint32_t u) { return _mm512_set1_epi32(static_cast<int>(u)); }
  static Lanes Load(const void* p) { return _mm512_loadu_si512(p); }
  static Lanes Round(Vec a) { return _mm512_cvtps_epi32(a.v); }
  static Lanes OfFloat(Vec a) { return _mm512_castps_si512(a.v); }
  void Store(void* p) const { _mm512_storeu_si512(p, *this); }
  void StoreInt8(int8_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(*this));
  }
  Vec ToFloat() const { return {_mm512_cvtepi32_ps(*this)}; }
  Vec AsFloat() const { return {_mm512_castsi512_ps(*this)}; }
  template <int kBits>
  Lanes Left() const {
    return _mm512_slli_epi32(*this, kBits);
  }
  template <int kBits>
  Lanes Right() const {  // zeros come in
    return _mm512_srli_epi32(*this, kBits);
  }
  template <int kBits>
  Lanes SignedRight() const {
    return _mm512_srai_epi32(*this, kBits);
  }
  friend Lanes operator&(Lanes a, Lanes b) { return _mm512_and_si512(a, b); }
  friend Lanes operator|(Lanes a, Lanes b) { return _mm512_or_si512(a, b); }
  friend Lanes operator^(Lanes a, Lanes b) { return _mm512_xor_si512(a, b); }
  friend Lanes operator+(Lanes a, Lanes b) { return _mm512_add_epi32(a, b); }
  friend Lanes operator-(Lanes a, Lanes b) { return _mm512_sub_epi32(a, b); }
  friend Lanes operator*(Lanes a, Lanes b) { return _mm512_mullo_epi32(a, b); }
};

}  // namespace
}  // namespace qkvgemm::cpu
