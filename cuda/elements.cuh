// Elements of tensors as float, whatever their type.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "ops/problem.h"

namespace qkvgemm::cuda {

__device__ inline void Store(void* data, DType type, int64_t i, float value) {
  if (type == DType::kFloat16) {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
  } else if (type == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<float*>(data)[i] = value;
  }
}

template <typename T>
__device__ __forceinline__ void Unpack2(uint32_t pair, float& a, float& b) {
  if constexpr (std::is_same_v<T, __half>) {
    const float2 f = __half22float2(*reinterpret_cast<const __half2*>(&pair));
    a = f.x, b = f.y;
  } else {
    a = __uint_as_float(pair << 16), b = __uint_as_float(pair & 0xffff0000u);
  }
}

// A float whose upper 19 bits are the nearest TensorFloat32, which is all that matrix instructions read, and
// whose lower 13 are those of the value itself: nothing is lost. What would round to infinity is cut off.
__device__ __forceinline__ float PackTf32(float v) {
  const uint32_t bits = __float_as_uint(v);
  if (!(fabsf(v) < 0x1.ffep127f)) return __uint_as_float(isnan(v) ? 0x7fc00000u : bits & 0xffffe000u);
  return __uint_as_float(((bits + 0x1000u) & 0xffffe000u) | (bits & 0x1fffu));
}

// The value; bit 12 tells that the upper bits were rounded up.
__device__ __forceinline__ float UnpackTf32(uint32_t packed) {
  return __uint_as_float(packed - ((packed & 0x1000u) << 1));
}

// A packed value in two parts, both of which matrix instructions read nearly as they are (the second to 11
// bits). Infinities and NaN have none: products of their parts with zeros would be NaN.
struct Tf32Parts {
  uint32_t high, low;

  __device__ __forceinline__ explicit Tf32Parts(uint32_t packed) {
    const bool finite = fabsf(__uint_as_float(packed)) < INFINITY;
    const float rest = UnpackTf32(packed) - __uint_as_float(packed & 0xffffe000u);
    high = finite ? packed : 0u;
    low = finite ? __float_as_uint(rest) + 0x1000u : 0u;
  }
};

// Eight elements of T in 16 bytes.
template <typename T>
__device__ __forceinline__ void Unpack(const uint4& raw, float (&v)[8]) {
  Unpack2<T>(raw.x, v[0], v[1]), Unpack2<T>(raw.y, v[2], v[3]);
  Unpack2<T>(raw.z, v[4], v[5]), Unpack2<T>(raw.w, v[6], v[7]);
}
template <typename T>
__device__ __forceinline__ uint32_t Pack2(float a, float b) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  } else {
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  }
}
template <typename T>
__device__ __forceinline__ uint4 PackChunk(const float (&v)[8]) {
  return {Pack2<T>(v[0], v[1]), Pack2<T>(v[2], v[3]), Pack2<T>(v[4], v[5]), Pack2<T>(v[6], v[7])};
}

// Eight elements of T from where 16 bytes at a time may be read. Not by __ldg: the kernel may have started
// while another wrote them, and what is read through the non-coherent cache must not change as long as a
// kernel runs (PTX ISA: ld.global.nc).
template <typename T>
__device__ __forceinline__ void LoadChunk(const T* from, float (&v)[8]) {
  if constexpr (std::is_same_v<T, float>) {
    const auto* halves = reinterpret_cast<const float4*>(from);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 f = halves[i];
      v[4 * i] = f.x, v[4 * i + 1] = f.y, v[4 * i + 2] = f.z, v[4 * i + 3] = f.w;
    }
  } else {
    const uint4 raw = *reinterpret_cast<const uint4*>(from);  // a reference would be read in four loads
    Unpack<T>(raw, v);
  }
}

template <typename T>
__device__ __forceinline__ void StoreChunk(T* to, const float (&v)[8]) {
  if constexpr (std::is_same_v<T, float>) {
    auto* halves = reinterpret_cast<float4*>(to);
#pragma unroll
    for (int i = 0; i < 2; ++i) halves[i] = {v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]};
  } else {
    *reinterpret_cast<uint4*>(to) = PackChunk<T>(v);
  }
}

// A tensor and its element type, for kernels that are not worth a template for each.
struct Vector {
  const void* data;
  DType type;

  __device__ float At(int64_t i) const {
    switch (type) {
      case DType::kFloat:
        return static_cast<const float*>(data)[i];
      case DType::kFloat16:
        return __half2float(static_cast<const __half*>(data)[i]);
      case DType::kBFloat16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
      case DType::kInt8:
        return static_cast<float>(static_cast<const int8_t*>(data)[i]);
    }
    return 0;
  }
  // Eight elements, not int8, from where 16 bytes at a time may be read.
  __device__ __forceinline__ void Chunk(int64_t i, float (&v)[8]) const {
    if (type == DType::kFloat) {
      LoadChunk(static_cast<const float*>(data) + i, v);
    } else if (type == DType::kFloat16) {
      LoadChunk(static_cast<const __half*>(data) + i, v);
    } else {
      LoadChunk(static_cast<const __nv_bfloat16*>(data) + i, v);
    }
  }
};

template <typename T>
inline constexpr DType kTypeOf = std::is_same_v<T, float>    ? DType::kFloat
                                 : std::is_same_v<T, __half> ? DType::kFloat16
                                                             : DType::kBFloat16;

// W and what scales it.
struct Weight {
  Vector w;
  Vector scale;              // data null: not int8
  const int8_t* zero_point;  // null: 0
  int64_t k, n;
  bool transposed;
  int64_t columns_per_scale;  // column n has scale[n / columns_per_scale]; 0: blocks along K
  int64_t block;              // row k of column n has scale[k / block * n_columns + n]

  __device__ int64_t Index(int64_t row, int64_t column) const {
    return transposed ? column * k + row : row * n + column;
  }
  __device__ int64_t ScaleIndex(int64_t row, int64_t column) const {
    return columns_per_scale ? column / columns_per_scale : row / block * n + column;
  }
  // Of int8: without its zero point and its scale.
  __device__ float Integer(int64_t row, int64_t column) const {
    const float zero = zero_point ? static_cast<float>(zero_point[ScaleIndex(row, column)]) : 0.0f;
    return w.At(Index(row, column)) - zero;
  }
  __device__ float At(int64_t row, int64_t column) const {
    if (scale.data == nullptr) return w.At(Index(row, column));
    return Integer(row, column) * scale.At(ScaleIndex(row, column));
  }
};

inline Weight MakeWeight(const Problem& p, const Operands& o) {
  Weight w{};
  w.w = {o.weight, p.tw};
  w.scale = {p.tw == DType::kInt8 ? o.scale : nullptr, p.scale_type};
  w.zero_point = static_cast<const int8_t*>(o.zero_point);
  w.k = p.k;
  w.n = p.n;
  w.transposed = p.transposed;
  if (p.scale_layout == ScaleLayout::kColumnGroups && p.scale_groups > 0)
    w.columns_per_scale = p.n / p.scale_groups;
  w.block = p.scale_block > 0 ? p.scale_block : 1;
  return w;
}

}  // namespace qkvgemm::cuda
