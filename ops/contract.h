// The operator's contract, version 1, as checks: which attributes, element types and shapes go together.
// Pure: knows ONNX Runtime's enumeration of element types and nothing else of it, so that every check can be
// read in one place.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "ops/problem.h"

namespace qkvgemm {

enum Input : size_t { kInput, kWeight, kGamma, kBeta, kBias, kScale, kZeroPoint, kInputCount };
constexpr const char* kInputNames[kInputCount] = {"input", "weight", "gamma",     "beta",
                                                  "bias",  "scale",  "zero_point"};

// Output slots: 0 is y (or the first split), 1 is `norm`, 2 and up are the further splits.
constexpr size_t kNormSlot = 1;
constexpr size_t SlotOfSplit(size_t split) { return split == 0 ? 0 : split + 1; }

struct Attributes {
  NormType norm_type = NormType::kLayerNorm;
  float epsilon = 1e-5f;
  bool transposed = false;
  bool emit_norm = false;
  bool activation_quant = false;
  std::vector<int64_t> splits;  // empty: one output of all N columns
};

// A view: whoever fills it owns the dimensions.
struct TensorInfo {
  bool present = false;
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  std::span<const int64_t> dims;  // -1: unknown, during shape inference
  int64_t Rank() const { return static_cast<int64_t>(dims.size()); }
};

// Thrown inside the library only; the op turns it into an OrtStatus with the node's name in front.
struct ContractError {
  std::string message;
};

// "layer_norm", "rms_norm" or "none"; throws ContractError for anything else.
NormType ParseNormType(const std::string& name);
// Checks that concern the attributes alone.
void CheckAttributes(const Attributes& attributes);
// T is a type that the op computes in.
void CheckInputType(ONNXTensorElementDataType type);
// The widths of the splits sum to N.
void CheckSplits(const Attributes& attributes, int64_t n);
// The most output slots that a node with these attributes may have; `norm` is empty without emit_norm.
size_t OutputSlots(const Attributes& attributes);

// What the weight side says: k, n, tw, scale layout. `splits` in the result is not set.
Problem WeightProblem(const Attributes& attributes, const TensorInfo& weight, const TensorInfo& scale,
                      const TensorInfo& zero_point);
// Everything; m is the product of the leading dimensions. The result points to the widths in `attributes`, or
// to `only_split`, which receives N, where there are none.
Problem FullProblem(const Attributes& attributes, const TensorInfo (&inputs)[kInputCount],
                    int64_t* only_split);

// False for an element type that no operand may have.
bool ToDType(ONNXTensorElementDataType type, DType* dtype);

std::string TypeName(ONNXTensorElementDataType type);
std::string ShapeName(std::span<const int64_t> dims);

}  // namespace qkvgemm
