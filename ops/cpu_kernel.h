// The op's kernel for the CPU execution provider: one object per node.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <memory>
#include <optional>
#include <string>

#include "ops/contract.h"
#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/ort_util.h"

namespace qkvgemm {

class CpuKernel {
 public:
  // Throws ContractError and StatusError. Constant weights are packed here, once.
  CpuKernel(const OrtApi& api, const OrtKernelInfo* info);
  ~CpuKernel();
  CpuKernel(const CpuKernel&) = delete;
  CpuKernel& operator=(const CpuKernel&) = delete;

  OrtStatus* Compute(OrtKernelContext* context) const noexcept;

 private:
  void ReadConstants(const OrtKernelInfo* info);
  void Run(OrtKernelContext* context) const;

  const OrtApi& api_;
  std::string where_;  // "com.deepspeed.QKVGemm node 'name'"
  Attributes attributes_;
  // Of inputs that never change, and of those that are absent: read once. Others are read in each call.
  std::optional<TensorInfo> constants_[kInputCount];
  Arena arena_;
  cpu::Isa isa_ = cpu::Isa::kScalar;
  int threads_ = 1;
  OrtMemoryInfo* memory_ = nullptr;
  std::unique_ptr<void, void (*)(void*)> packed_{nullptr, std::free};
};

// "com.deepspeed.QKVGemm node 'name'"
std::string WhereOf(const OrtApi& api, const OrtKernelInfo* info);

}  // namespace qkvgemm
