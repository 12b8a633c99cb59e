#include "ops/shape_inference.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

#include "ops/attributes.h"
#include "ops/contract.h"
#include "ops/ort_util.h"

namespace qkvgemm {
namespace {

// A name for a dimension that is neither known nor named. ONNX Runtime writes -1 into the model where a
// dimension has no name, and then folds that -1 into shapes computed from it; a name that occurs nowhere else
// says "unknown".
std::string UnknownDimension() {
  static std::atomic<uint64_t> counter{0};
  return "com.deepspeed.QKVGemm_dim_" + std::to_string(counter++);
}

// [leading dimensions of the input..., width]; -1: unknown. Symbolic names travel along.
void SetOutput(const OrtApi& api, OrtShapeInferContext* context, size_t slot, const TensorInfo& input,
               const std::vector<std::string>& input_names, int64_t width, const std::string& width_name) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ThrowIfError(api.CreateTensorTypeAndShapeInfo(&info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  std::vector<int64_t> dims(input.dims.begin(), input.dims.end());
  dims.back() = width;
  std::vector<const char*> names(dims.size(), "");
  for (size_t i = 0; i < dims.size(); ++i)
    if (dims[i] < 0) names[i] = i + 1 == dims.size() ? width_name.c_str() : input_names[i].c_str();
  ThrowIfError(api.SetTensorElementType(info, input.type));
  ThrowIfError(api.SetDimensions(info, dims.data(), dims.size()));
  ThrowIfError(api.SetSymbolicDimensions(info, names.data(), names.size()));
  ThrowIfError(api.ShapeInferContext_SetOutputTypeShape(context, slot, info));
}

TensorInfo InputInfo(const OrtApi& api, const OrtShapeInferContext* context, size_t index,
                     std::vector<std::string>* names, Arena& arena) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // stays the context's
  ThrowIfError(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  if (info == nullptr) return {};
  const TensorInfo t = ReadInfo(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info), arena);
  std::vector<const char*> symbols(t.dims.size());
  ThrowIfError(api.GetSymbolicDimensions(info, symbols.data(), symbols.size()));
  for (const char* symbol : symbols)
    names->push_back(symbol != nullptr && *symbol != '\0' ? std::string(symbol) : UnknownDimension());
  return t;
}

}  // namespace

OrtStatus* InferShapes(const OrtApi& api, OrtShapeInferContext* context) noexcept {
  return Guard(api, "com.deepspeed.QKVGemm", [&] {
    const Attributes attributes = ReadShapeAttributes(api, context);
    std::vector<std::string> names, weight_names;
    Arena arena;
    const TensorInfo input = InputInfo(api, context, kInput, &names, arena);
    const TensorInfo weight = InputInfo(api, context, kWeight, &weight_names, arena);
    // No rank is known (a scalar looks the same here, and the kernel refuses it). The API sets type and shape
    // together only, and ONNX Runtime folds a wrong shape into what is computed from it: say neither. The
    // types are then those that the model states for the outputs, as the rewriter does.
    if (input.dims.empty()) return;
    CheckInputType(input.type);  // else ONNX Runtime complains of the outputs, which take the type over
    int64_t n = -1, k = -1;
    std::string n_name;
    const std::string k_name = names.back();
    if (weight.Rank() == 2) {
      n = weight.dims[attributes.transposed ? 0 : 1];
      k = weight.dims[attributes.transposed ? 1 : 0];
      n_name = weight_names[attributes.transposed ? 0 : 1];
    }
    if (input.dims.back() >= 0 && k >= 0 && input.dims.back() != k)
      throw ContractError{"input 0 'input': expected last dimension K = " + std::to_string(k) +
                          ", as weight " + ShapeName(weight.dims) + " has it, found " +
                          ShapeName(input.dims)};
    std::vector<int64_t> splits = attributes.splits.empty() ? std::vector<int64_t>{n} : attributes.splits;
    if (n >= 0) CheckSplits(attributes, n);
    for (size_t s = 0; s < splits.size(); ++s)
      SetOutput(api, context, SlotOfSplit(s), input, names, splits[s],
                n_name.empty() ? UnknownDimension() : n_name);
    if (attributes.emit_norm)
      SetOutput(api, context, kNormSlot, input, names, input.dims.back() >= 0 ? input.dims.back() : k,
                k_name);
  });
}

}  // namespace qkvgemm
