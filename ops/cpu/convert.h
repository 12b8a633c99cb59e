// Scalar conversions between float and the 16-bit formats, for tails and for machines without instructions
// for them. `static`: every translation unit gets its own copy, compiled for its own instruction set; a
// shared inline function could be taken from the unit with the widest one.
#pragma once

#include <cstdint>
#include <cstring>

namespace qkvgemm::cpu {

[[maybe_unused]] static uint32_t BitsOf(float f) {
  uint32_t u;
  std::memcpy(&u, &f, sizeof u);
  return u;
}

[[maybe_unused]] static float FloatOf(uint32_t u) {
  float f;
  std::memcpy(&f, &u, sizeof f);
  return f;
}

[[maybe_unused]] static float BFloat16ToFloat(uint16_t h) { return FloatOf(static_cast<uint32_t>(h) << 16); }

// Round to nearest even; NaN stays NaN (made quiet, so that the rounding below cannot carry it into
// infinity).
[[maybe_unused]] static uint16_t FloatToBFloat16(float f) {
  const uint32_t u = BitsOf(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

[[maybe_unused]] static float Float16ToFloat(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return FloatOf(BitsOf(magnitude) | sign);
  }
  if (exponent == 31) return FloatOf(sign | 0x7f800000u | (mantissa << 13));
  return FloatOf(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

// Round to nearest even; overflow goes to infinity, underflow through the subnormals (IEEE 754).
[[maybe_unused]] static uint16_t FloatToFloat16(float f) {
  const uint32_t u = BitsOf(f);
  const uint16_t sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to 2^16 or is infinite
  if (a < 0x38800000u) {  // below 2^-14: adding 0.5 lets the float unit round at 2^-24
    const uint32_t r = BitsOf(FloatOf(a) + 0.5f) - BitsOf(0.5f);
    return static_cast<uint16_t>(sign | r);
  }
  return static_cast<uint16_t>(sign | ((a + 0xfffu + ((a >> 13) & 1u) - (112u << 23)) >> 13));
}

}  // namespace qkvgemm::cpu
