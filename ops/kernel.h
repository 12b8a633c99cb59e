// What the op's kernels have in common, whatever execution provider they are for: one object per node, which
// reads and checks everything and hands a problem to the provider's own half.
#pragma once

#include <onnxruntime_c_api.h>

#include <optional>
#include <string>

#include "ops/contract.h"
#include "ops/ort_util.h"

namespace qkvgemm {

class Kernel {
 public:
  virtual ~Kernel() = default;
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  OrtStatus* Compute(OrtKernelContext* context) const noexcept;

 protected:
  // Checks attributes and outputs, and finds the constants. Throws ContractError and StatusError, as Run may.
  Kernel(const OrtApi& api, const OrtKernelInfo* info);

  // Computes a checked problem that has rows.
  virtual void Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const = 0;

  // An input that never changes or is absent. Its tensor belongs to the session; null: absent.
  struct Constant {
    TensorInfo info;
    const OrtValue* value = nullptr;
  };

  const OrtApi& api_;
  const std::string where_;  // "com.deepspeed.QKVGemm node 'name'"
  const Attributes attributes_;
  // By input; those without a value here are read in each call.
  std::optional<Constant> constants_[kInputCount];

 private:
  Arena arena_;
};

// "com.deepspeed.QKVGemm node 'name'"
std::string WhereOf(const OrtApi& api, const OrtKernelInfo* info);

// The operands that come in, by input.
Operands InputOperands(const void* const (&data)[kInputCount]);

}  // namespace qkvgemm
