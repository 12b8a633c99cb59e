#include "ops/shape_inference.h"

#include <memory>

#include "ops/attributes.h"
#include "ops/contract.h"
#include "ops/ort_util.h"

namespace qkvgemm {
namespace {

// [leading dimensions of the input..., width]; -1: unknown. Symbolic names travel along.
void SetOutput(const OrtApi& api, OrtShapeInferContext* context, size_t slot, const TensorInfo& input,
               const std::vector<const char*>& input_names, int64_t width, const char* width_name) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  ThrowIfError(api.CreateTensorTypeAndShapeInfo(&info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  std::vector<int64_t> dims = input.dims;
  std::vector<const char*> names = input_names;
  dims.back() = width;
  names.back() = width_name;
  ThrowIfError(api.SetTensorElementType(info, input.type));
  ThrowIfError(api.SetDimensions(info, dims.data(), dims.size()));
  ThrowIfError(api.SetSymbolicDimensions(info, names.data(), names.size()));
  ThrowIfError(api.ShapeInferContext_SetOutputTypeShape(context, slot, info));
}

TensorInfo InputInfo(const OrtApi& api, const OrtShapeInferContext* context, size_t index,
                     std::vector<const char*>* names) {
  OrtTensorTypeAndShapeInfo* info = nullptr;  // stays the context's
  ThrowIfError(api.ShapeInferContext_GetInputTypeShape(context, index, &info));
  if (info == nullptr) return {};
  TensorInfo t = ReadInfo(api, static_cast<const OrtTensorTypeAndShapeInfo*>(info));
  names->resize(t.dims.size());
  ThrowIfError(api.GetSymbolicDimensions(info, names->data(), names->size()));
  return t;
}

}  // namespace

OrtStatus* InferShapes(const OrtApi& api, OrtShapeInferContext* context) noexcept {
  return Guard(api, "com.deepspeed.QKVGemm", [&] {
    const Attributes attributes = ReadShapeAttributes(api, context);
    std::vector<const char*> names, weight_names;
    TensorInfo input = InputInfo(api, context, kInput, &names);
    const TensorInfo weight = InputInfo(api, context, kWeight, &weight_names);
    if (input.dims.empty()) {
      // No shape is known (a scalar looks the same here, and the kernel refuses it). Saying nothing would
      // leave the outputs without a type, and the API sets the two together only.
      input.dims = {-1};
      names = {""};
    }
    int64_t n = -1, k = -1;
    const char* n_name = "";
    const char* k_name = names.back();
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
      SetOutput(api, context, SlotOfSplit(s), input, names, splits[s], splits[s] < 0 ? n_name : "");
    if (attributes.emit_norm)
      SetOutput(api, context, kNormSlot, input, names, input.dims.back() >= 0 ? input.dims.back() : k,
                k_name);
  });
}

}  // namespace qkvgemm
