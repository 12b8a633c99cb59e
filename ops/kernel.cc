#include "ops/kernel.h"

#include <algorithm>

#include "ops/attributes.h"

namespace qkvgemm {
namespace {

void CheckOutputs(const OrtApi& api, const OrtKernelInfo* info, const Attributes& attributes) {
  size_t outputs = 0;
  ThrowIfError(api.KernelInfo_GetOutputCount(info, &outputs));
  if (outputs > OutputSlots(attributes))
    throw ContractError{"expected at most " + std::to_string(OutputSlots(attributes)) +
                        " outputs, as attributes 'splits' and 'emit_norm' say, found " +
                        std::to_string(outputs)};
  if (outputs <= kNormSlot || attributes.emit_norm) return;
  // Nothing is written there, and ONNX Runtime would hand its caller a value that does not exist.
  size_t length = 0;
  ThrowIfError(api.KernelInfo_GetOutputName(info, kNormSlot, nullptr, &length));
  std::string name(length, '\0');
  ThrowIfError(api.KernelInfo_GetOutputName(info, kNormSlot, name.data(), &length));
  if (length > 1)  // it counts the terminating zero
    throw ContractError{"output 1 'norm': expected no name unless attribute 'emit_norm' is 1, found '" +
                        std::string(name.c_str()) + "'"};
}

}  // namespace

std::string WhereOf(const OrtApi& api, const OrtKernelInfo* info) {
  size_t length = 0;
  std::string name;
  if (OrtStatus* status = api.KernelInfo_GetNodeName(info, nullptr, &length)) {
    api.ReleaseStatus(status);
  } else {
    name.resize(length);
    ThrowIfError(api.KernelInfo_GetNodeName(info, name.data(), &length));
    name.resize(length == 0 ? 0 : length - 1);
  }
  return "com.deepspeed.QKVGemm node '" + name + "'";
}

Operands InputOperands(const void* const (&data)[kInputCount]) {
  Operands operands;
  operands.input = data[kInput];
  operands.weight = data[kWeight];
  operands.gamma = data[kGamma];
  operands.beta = data[kBeta];
  operands.bias = data[kBias];
  operands.scale = data[kScale];
  operands.zero_point = data[kZeroPoint];
  return operands;
}

Kernel::Kernel(const OrtApi& api, const OrtKernelInfo* info)
    : api_(api), where_(WhereOf(api, info)), attributes_(ReadAttributes(api, info)) {
  CheckOutputs(api_, info, attributes_);
  size_t input_count = 0;
  ThrowIfError(api_.KernelInfo_GetInputCount(info, &input_count));
  for (size_t i = 0; i < kInputCount; ++i) {
    size_t length = 0;
    if (i < input_count) ThrowIfError(api_.KernelInfo_GetInputName(info, i, nullptr, &length));
    if (length <= 1) {  // an optional input left out or left empty
      constants_[i] = Constant{};
      continue;
    }
    int constant = 0;
    const OrtValue* value = nullptr;
    ThrowIfError(api_.KernelInfoGetConstantInput_tensor(info, i, &constant, &value));
    if (constant) constants_[i] = Constant{ReadInfo(api_, value, arena_), value};
  }
}

OrtStatus* Kernel::Compute(OrtKernelContext* context) const noexcept {
  return Guard(api_, where_.c_str(), [&] {
    size_t input_count = 0, output_count = 0;
    ThrowIfError(api_.KernelContext_GetInputCount(context, &input_count));
    ThrowIfError(api_.KernelContext_GetOutputCount(context, &output_count));
    Arena arena;
    TensorInfo infos[kInputCount];
    const void* data[kInputCount] = {};
    for (size_t i = 0; i < input_count && i < kInputCount; ++i) {
      const OrtValue* value = nullptr;
      ThrowIfError(api_.KernelContext_GetInput(context, i, &value));
      infos[i] = constants_[i] ? constants_[i]->info : ReadInfo(api_, value, arena);
      data[i] = ReadData(api_, value);
    }
    int64_t only_split = 0;
    const Problem problem = FullProblem(attributes_, infos, &only_split);

    const std::span<int64_t> dims = arena.New<int64_t>(infos[kInput].dims.size());
    std::ranges::copy(infos[kInput].dims, dims.begin());
    const auto output = [&](size_t slot, int64_t width) -> void* {
      if (slot >= output_count) return nullptr;
      dims.back() = width;
      OrtValue* value = nullptr;
      ThrowIfError(api_.KernelContext_GetOutput(context, slot, dims.data(), dims.size(), &value));
      return const_cast<void*>(ReadData(api_, value));
    };
    Operands operands = InputOperands(data);
    const std::span<void*> y = arena.New<void*>(static_cast<size_t>(problem.num_splits));
    for (size_t s = 0; s < y.size(); ++s) y[s] = output(SlotOfSplit(s), problem.splits[s]);
    operands.y = y.data();
    if (attributes_.emit_norm) operands.norm = output(kNormSlot, problem.k);
    if (problem.m > 0) Run(context, problem, operands);
  });
}

}  // namespace qkvgemm
