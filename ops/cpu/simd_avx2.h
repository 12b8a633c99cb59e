// Eight floats at a time: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "ops/cpu/convert.h"

namespace qkvgemm::cpu {
namespace {

struct Vec {
  __m256 v;
  static constexpr int kLanes = 8;
  static Vec Zero() { return {_mm256_setzero_ps()}; }
  static Vec Set(float f) { return {_mm256_set1_ps(f)}; }
  static Vec Load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec LoadBFloat16(const uint16_t* p) {
    const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
  }
  static Vec LoadFloat16(const uint16_t* p) {
    return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
  }
  static Vec LoadInt8(const int8_t* p) {
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))))};
  }
  void Store(float* p) const { _mm256_storeu_ps(p, v); }
  void StoreBFloat16(uint16_t* p) const {
    const __m256i u = _mm256_castps_si256(v);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    const __m256i even =
        _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, odd), _mm256_set1_epi32(0x7fff)), 16);
    const __m256i quiet = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    const __m256i r = _mm256_blendv_epi8(even, quiet, nan);
    const __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
  }
  void StoreFloat16(uint16_t* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
  friend Vec operator+(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  friend Vec operator-(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
  friend Vec operator*(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  // NaN in b wins (maxps returns its second operand).
  static Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
  static Vec Abs(Vec a) { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), a.v)}; }
  static Vec Round(Vec a) { return {_mm256_round_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  float Sum() const {
    const __m128 q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
  }
  float Max() const {
    float lanes[kLanes];
    _mm256_storeu_ps(lanes, v);
    float m = lanes[0];
    for (int i = 1; i < kLanes; ++i) m = m > lanes[i] ? m : lanes[i];
    return m;
  }
};

// Lanes of 32 bits: an integer, or two bfloat16 or four int8 of consecutive k.
struct Lanes {
  // Not __m256i, whose elements are 64 bits: g++ keeps arrays of sums in memory where their elements and
  // those of an instruction differ.
  typedef int32_t Vector __attribute__((vector_size(32)));
  Vector v;
  Lanes() = default;
  Lanes(__m256i m) : v((Vector)m) {}
  operator __m256i() const { return (__m256i)v; }
  static Lanes Zero() { return _mm256_setzero_si256(); }
  static Lanes Set(uint32_t u) { return _mm256_set1_epi32(static_cast<int>(u)); }
  static Lanes Load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
  static Lanes Round(Vec a) { return _mm256_cvtps_epi32(a.v); }
  static Lanes OfFloat(Vec a) { return _mm256_castps_si256(a.v); }
  void Store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), *this); }
  void StoreInt8(int8_t* p) const {
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(*this), _mm256_extracti128_si256(*this, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
  }
  Vec ToFloat() const { return {_mm256_cvtepi32_ps(*this)}; }
  Vec AsFloat() const { return {_mm256_castsi256_ps(*this)}; }
  template <int kBits>
  Lanes Left() const {
    return _mm256_slli_epi32(*this, kBits);
  }
  template <int kBits>
  Lanes Right() const {  // zeros come in
    return _mm256_srli_epi32(*this, kBits);
  }
  template <int kBits>
  Lanes SignedRight() const {
    return _mm256_srai_epi32(*this, kBits);
  }
  friend Lanes operator&(Lanes a, Lanes b) { return _mm256_and_si256(a, b); }
  friend Lanes operator|(Lanes a, Lanes b) { return _mm256_or_si256(a, b); }
  friend Lanes operator^(Lanes a, Lanes b) { return _mm256_xor_si256(a, b); }
  friend Lanes operator+(Lanes a, Lanes b) { return _mm256_add_epi32(a, b); }
  friend Lanes operator-(Lanes a, Lanes b) { return _mm256_sub_epi32(a, b); }
  friend Lanes operator*(Lanes a, Lanes b) { return _mm256_mullo_epi32(a, b); }
};

}  // namespace
}  // namespace qkvgemm::cpu
