// Loading and storing tensors of any element type as float. Part of the body in qkv_gemm-inl.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/problem.h"

namespace qkvgemm::cpu {
namespace {

constexpr int kLanes = Vec::kLanes;

template <DType kType>
struct Element;
template <>
struct Element<DType::kFloat> {
  using Type = float;
  static Vec Load(const float* p) { return Vec::Load(p); }
};
template <>
struct Element<DType::kFloat16> {
  using Type = uint16_t;
  static Vec Load(const uint16_t* p) { return Vec::LoadFloat16(p); }
};
template <>
struct Element<DType::kBFloat16> {
  using Type = uint16_t;
  static Vec Load(const uint16_t* p) { return Vec::LoadBFloat16(p); }
};
template <>
struct Element<DType::kInt8> {
  using Type = int8_t;
  static Vec Load(const int8_t* p) { return Vec::LoadInt8(p); }
};

// Input tensors are aligned to their element at best: 16-bit elements are read through memcpy in tails.
uint16_t HalfAt(const void* p, int64_t i) {
  uint16_t h;
  std::memcpy(&h, static_cast<const char*>(p) + 2 * i, sizeof h);
  return h;
}

void ToFloat(DType from, const void* source, float* target, int64_t count) {
  int64_t i = 0;
  switch (from) {
    case DType::kFloat:
      std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
      return;
    case DType::kFloat16: {
      const auto* p = static_cast<const uint16_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadFloat16(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = Float16ToFloat(HalfAt(source, i));
      return;
    }
    case DType::kBFloat16: {
      const auto* p = static_cast<const uint16_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadBFloat16(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = BFloat16ToFloat(HalfAt(source, i));
      return;
    }
    case DType::kInt8: {
      const auto* p = static_cast<const int8_t*>(source);
      for (; i + kLanes <= count; i += kLanes) Vec::LoadInt8(p + i).Store(target + i);
      for (; i < count; ++i) target[i] = static_cast<float>(p[i]);
      return;
    }
  }
}

void FromFloat(DType to, const float* source, void* target, int64_t count) {
  int64_t i = 0;
  if (to == DType::kFloat16) {
    auto* p = static_cast<uint16_t*>(target);
    for (; i + kLanes <= count; i += kLanes) Vec::Load(source + i).StoreFloat16(p + i);
    for (; i < count; ++i) {
      const uint16_t h = FloatToFloat16(source[i]);
      std::memcpy(p + i, &h, sizeof h);
    }
  } else if (to == DType::kBFloat16) {
    auto* p = static_cast<uint16_t*>(target);
    for (; i + kLanes <= count; i += kLanes) Vec::Load(source + i).StoreBFloat16(p + i);
    for (; i < count; ++i) {
      const uint16_t h = FloatToBFloat16(source[i]);
      std::memcpy(p + i, &h, sizeof h);
    }
  } else {
    std::memcpy(target, source, static_cast<size_t>(count) * sizeof(float));
  }
}

template <DType kType>
void StoreAs(const RowsOfFloats& from, const float* bias, int64_t columns, const RowsOfResults& to) {
  const float* source = from.data;
  auto* target = static_cast<char*>(to.data);
  const int64_t step = to.pitch * static_cast<int64_t>(SizeOf(kType));
  for (int64_t r = 0; r < from.rows; ++r, source += from.pitch, target += step) {
    auto* const p = reinterpret_cast<typename Element<kType>::Type*>(target);
    int64_t i = 0;
    for (; i + kLanes <= columns; i += kLanes) {
      Vec v = Vec::Load(source + i);
      if (bias != nullptr) v = v + Vec::Load(bias + i);
      if constexpr (kType == DType::kFloat16) {
        v.StoreFloat16(p + i);
      } else if constexpr (kType == DType::kBFloat16) {
        v.StoreBFloat16(p + i);
      } else {
        v.Store(p + i);
      }
    }
    float rest[kLanes];
    const int64_t left = columns - i;
    for (int64_t e = 0; e < left; ++e) rest[e] = source[i + e] + (bias != nullptr ? bias[i + e] : 0.0f);
    if (left > 0) FromFloat(kType, rest, p + i, left);
  }
}

void StoreRows(const RowsOfFloats& from, const float* bias, int64_t columns, const RowsOfResults& to) {
  if (to.type == DType::kFloat16) return StoreAs<DType::kFloat16>(from, bias, columns, to);
  if (to.type == DType::kBFloat16) return StoreAs<DType::kBFloat16>(from, bias, columns, to);
  StoreAs<DType::kFloat>(from, bias, columns, to);
}

}  // namespace
}  // namespace qkvgemm::cpu
