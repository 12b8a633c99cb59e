#include "ops/contract.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace qkvgemm {
namespace {

[[noreturn]] void Fail(std::string message) { throw ContractError{std::move(message)}; }

[[noreturn]] void FailInput(Input input, const std::string& expected, const std::string& found) {
  Fail("input " + std::to_string(input) + " '" + kInputNames[input] + "': expected " + expected + ", found " +
       found);
}

std::string Describe(const TensorInfo& t) { return TypeName(t.type) + " " + ShapeName(t.dims); }

DType FloatType(Input input, ONNXTensorElementDataType type) {
  DType dtype;
  if (!ToDType(type, &dtype) || dtype == DType::kInt8)
    FailInput(input, "float, float16 or bfloat16", TypeName(type));
  return dtype;
}

// gamma, beta and bias: T or float, one dimension of the given length.
DType VectorType(Input input, const TensorInfo& t, ONNXTensorElementDataType input_type, int64_t length,
                 const char* length_name) {
  if (t.type != input_type && t.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT)
    FailInput(input,
              input_type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
                  ? "float"
                  : TypeName(input_type) + " (as input) or float",
              TypeName(t.type));
  if (t.Rank() != 1 || t.dims[0] != length)
    FailInput(input, std::string("shape [") + length_name + "] = [" + std::to_string(length) + "]",
              ShapeName(t.dims));
  return FloatType(input, t.type);
}

}  // namespace

bool ToDType(ONNXTensorElementDataType type, DType* dtype) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      *dtype = DType::kFloat;
      return true;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      *dtype = DType::kFloat16;
      return true;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      *dtype = DType::kBFloat16;
      return true;
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      *dtype = DType::kInt8;
      return true;
    default:
      return false;
  }
}

std::string TypeName(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT:
      return "float";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "float16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16:
      return "bfloat16";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE:
      return "double";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return "int8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return "uint8";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "int32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64:
      return "int64";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL:
      return "bool";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING:
      return "string";
    default:
      return "element type " + std::to_string(static_cast<int>(type));
  }
}

std::string ShapeName(std::span<const int64_t> dims) {
  std::string s = "[";
  for (size_t i = 0; i < dims.size(); ++i)
    s += (i ? ", " : "") + (dims[i] < 0 ? "?" : std::to_string(dims[i]));
  return s + "]";
}

NormType ParseNormType(const std::string& name) {
  if (name == "layer_norm") return NormType::kLayerNorm;
  if (name == "rms_norm") return NormType::kRmsNorm;
  if (name == "none") return NormType::kNone;
  Fail("attribute 'norm_type': expected 'layer_norm', 'rms_norm' or 'none', found '" + name + "'");
}

void CheckAttributes(const Attributes& a) {
  if (!std::isfinite(a.epsilon) || a.epsilon < 0)
    Fail("attribute 'epsilon': expected a finite number >= 0, found " + std::to_string(a.epsilon));
  if (a.norm_type == NormType::kNone && a.emit_norm)
    Fail(
        "attribute 'emit_norm': expected 0 with norm_type 'none', which has no normalised input to emit, "
        "found 1");
  for (size_t i = 0; i < a.splits.size(); ++i)
    if (a.splits[i] < 0)
      Fail("attribute 'splits': expected widths >= 0, found " + std::to_string(a.splits[i]) + " at index " +
           std::to_string(i));
}

void CheckInputType(ONNXTensorElementDataType type) { FloatType(kInput, type); }

void CheckSplits(const Attributes& a, int64_t n) {
  if (a.splits.empty()) return;
  // A sum that wraps around to N would let a split reach far beyond the weight's columns.
  int64_t sum = 0;
  const bool fits = std::ranges::none_of(
      a.splits, [&sum](int64_t width) { return __builtin_add_overflow(sum, width, &sum); });
  if (!fits || sum != n)
    Fail("attribute 'splits': expected widths that sum to N = " + std::to_string(n) + ", found " +
         ShapeName(a.splits) + ", sum " + (fits ? std::to_string(sum) : "beyond 64 bits"));
}

size_t OutputSlots(const Attributes& a) {
  if (a.splits.size() > 1) return SlotOfSplit(a.splits.size() - 1) + 1;
  return kNormSlot + 1;  // without emit_norm the second may be there and empty
}

Problem WeightProblem(const Attributes& a, const TensorInfo& weight, const TensorInfo& scale,
                      const TensorInfo& zero_point) {
  Problem p;
  p.transposed = a.transposed;
  if (!weight.present) FailInput(kWeight, a.transposed ? "a tensor [N, K]" : "a tensor [K, N]", "nothing");
  if (!ToDType(weight.type, &p.tw))
    FailInput(kWeight, "float, float16, bfloat16 or int8", TypeName(weight.type));
  if (weight.Rank() != 2)
    FailInput(kWeight, a.transposed ? "2 dimensions [N, K]" : "2 dimensions [K, N]", ShapeName(weight.dims));
  p.k = weight.dims[a.transposed ? 1 : 0];
  p.n = weight.dims[a.transposed ? 0 : 1];
  // Where one is 0 no memory bounds the other, and sizes computed from it would wrap around.
  constexpr int64_t kLongest = std::numeric_limits<int32_t>::max();
  if (p.k > kLongest || p.n > kLongest)
    FailInput(kWeight, "dimensions of at most " + std::to_string(kLongest), ShapeName(weight.dims));
  if (p.tw != DType::kInt8) {
    if (a.activation_quant)
      Fail("attribute 'activation_quant': expected 0 unless weight is int8, found 1 with weight " +
           TypeName(weight.type));
    if (scale.present)
      FailInput(kScale, "nothing: only int8 weights are scaled, weight is " + TypeName(weight.type),
                Describe(scale));
    if (zero_point.present)
      FailInput(kZeroPoint, "nothing: weight is " + TypeName(weight.type) + ", not int8",
                Describe(zero_point));
    return p;
  }
  if (!scale.present) FailInput(kScale, "a tensor: int8 weights need one", "nothing");
  if (!ToDType(scale.type, &p.scale_type) ||
      (p.scale_type != DType::kFloat && p.scale_type != DType::kFloat16))
    FailInput(kScale, "float or float16", TypeName(scale.type));
  if (scale.Rank() == 2) {
    const int64_t blocks = scale.dims[0];
    if (blocks < 1 || p.k % blocks != 0 || scale.dims[1] != p.n)
      FailInput(kScale,
                "[K/B, N] with a whole block length B and K = " + std::to_string(p.k) +
                    ", N = " + std::to_string(p.n),
                ShapeName(scale.dims));
    p.scale_layout = ScaleLayout::kBlocks;
    p.scale_block = p.k == 0 ? 1 : p.k / blocks;
  } else {
    // A scalar is accepted as G = 1: exporters write per-tensor scales so.
    p.scale_groups = scale.Rank() == 0 ? 1 : scale.dims[0];
    if (scale.Rank() > 1 || (p.n != 0 && (p.scale_groups < 1 || p.n % p.scale_groups != 0)))
      FailInput(kScale, "[G] with G dividing N = " + std::to_string(p.n) + ", or [K/B, N]",
                ShapeName(scale.dims));
    p.scale_layout = ScaleLayout::kColumnGroups;
  }
  p.has_zero_point = zero_point.present;
  if (zero_point.present) {
    if (zero_point.type != ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8)
      FailInput(kZeroPoint, "int8", TypeName(zero_point.type));
    if (!std::ranges::equal(zero_point.dims, scale.dims))
      FailInput(kZeroPoint, "the shape of scale, " + ShapeName(scale.dims), ShapeName(zero_point.dims));
  }
  return p;
}

Problem FullProblem(const Attributes& a, const TensorInfo (&inputs)[kInputCount], int64_t* only_split) {
  Problem p = WeightProblem(a, inputs[kWeight], inputs[kScale], inputs[kZeroPoint]);
  const TensorInfo& x = inputs[kInput];
  if (!x.present) FailInput(kInput, "a tensor [..., K]", "nothing");
  p.t = FloatType(kInput, x.type);
  if (x.Rank() < 1) FailInput(kInput, "at least 1 dimension [..., K]", "a scalar");
  if (x.dims.back() != p.k)
    FailInput(kInput,
              "last dimension K = " + std::to_string(p.k) + ", as weight " + ShapeName(inputs[kWeight].dims) +
                  (a.transposed ? " (transposed)" : "") + " has it",
              ShapeName(x.dims));
  p.m = 1;
  for (const int64_t rows : x.dims.first(x.dims.size() - 1))
    if (__builtin_mul_overflow(p.m, rows, &p.m))
      FailInput(kInput, "leading dimensions whose product fits 64 bits", ShapeName(x.dims));
  p.norm = a.norm_type;
  p.epsilon = a.epsilon;
  p.activation_quant = a.activation_quant;
  if (inputs[kGamma].present) {
    if (p.norm == NormType::kNone)
      FailInput(kGamma, "nothing with norm_type 'none'", Describe(inputs[kGamma]));
    p.gamma_type = VectorType(kGamma, inputs[kGamma], x.type, p.k, "K");
  }
  if (inputs[kBeta].present) {
    if (p.norm != NormType::kLayerNorm)
      FailInput(kBeta, "nothing unless norm_type is 'layer_norm'", Describe(inputs[kBeta]));
    p.beta_type = VectorType(kBeta, inputs[kBeta], x.type, p.k, "K");
  }
  if (inputs[kBias].present) p.bias_type = VectorType(kBias, inputs[kBias], x.type, p.n, "N");
  CheckSplits(a, p.n);
  *only_split = p.n;
  p.splits = a.splits.empty() ? only_split : a.splits.data();
  p.num_splits = a.splits.empty() ? 1 : static_cast<int64_t>(a.splits.size());
  return p;
}

}  // namespace qkvgemm
