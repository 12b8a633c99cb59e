// The one description of a QKVGemm call that every layer shares: the op fills it, a plan reads it, kernels
// (CPU and CUDA) compute from it. Knows neither ONNX Runtime nor Node.
//
//   y = norm(input) * W (+ bias), accumulated in float32, rounded once to T.
#pragma once

#include <cstddef>
#include <cstdint>

namespace qkvgemm {

enum class DType : uint8_t { kFloat, kFloat16, kBFloat16, kInt8 };
enum class NormType : uint8_t { kLayerNorm, kRmsNorm, kNone };

// How `scale` and `zero_point` are laid out for int8 weights.
enum class ScaleLayout : uint8_t {
  kAbsent,        // weights are not int8
  kColumnGroups,  // [G]: column n uses scale[n / (N / G)]; G = 1 is one scale, G = N is per column
  kBlocks,        // [K / B, N]: row k, column n uses scale[(k / B) * N + n]
};

constexpr size_t SizeOf(DType t) { return t == DType::kFloat ? 4 : t == DType::kInt8 ? 1 : 2; }

// Everything known when the kernel is created, apart from `m`.
struct Problem {
  int64_t m = 0;  // rows of the input: the product of its leading dimensions
  int64_t k = 0;  // columns of the input; length of the normalised axis
  int64_t n = 0;  // columns of the output: the sum of `splits`

  DType t = DType::kFloat;   // input, y, norm
  DType tw = DType::kFloat;  // weight
  // Element types of the vectors; meaningful where the operand is present.
  DType gamma_type = DType::kFloat;
  DType beta_type = DType::kFloat;
  DType bias_type = DType::kFloat;
  DType scale_type = DType::kFloat;  // kFloat or kFloat16

  NormType norm = NormType::kLayerNorm;
  float epsilon = 1e-5f;
  bool transposed = false;        // weight is [N, K]
  bool activation_quant = false;  // int8 x int8: normalised rows are quantised to int8, one scale a row

  ScaleLayout scale_layout = ScaleLayout::kAbsent;
  bool has_zero_point = false;
  int64_t scale_groups = 0;  // kColumnGroups: G
  int64_t scale_block = 0;   // kBlocks: B

  const int64_t* splits = nullptr;  // num_splits widths that sum to n
  int64_t num_splits = 1;
};

// Device or host pointers, as the kernel wants them. Null: absent. No alignment beyond the element's own.
struct Operands {
  const void* input = nullptr;       // T [m, k]
  const void* weight = nullptr;      // TW [k, n], or [n, k] when transposed
  const void* gamma = nullptr;       // [k]
  const void* beta = nullptr;        // [k]
  const void* bias = nullptr;        // [n]
  const void* scale = nullptr;       // see ScaleLayout
  const void* zero_point = nullptr;  // int8, laid out as scale
  void* norm = nullptr;              // T [m, k]
  void* const* y = nullptr;          // num_splits pointers: T [m, splits[i]]; null: not wanted
};

}  // namespace qkvgemm
