// The op's kernel for the CPU execution provider.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <memory>

#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/kernel.h"

namespace qkvgemm {

class CpuKernel final : public Kernel {
 public:
  static constexpr const char* kProvider = nullptr;  // the CPU's

  // Constant weights are packed here, once.
  CpuKernel(const OrtApi& api, const OrtKernelInfo* info);
  ~CpuKernel() override;

 private:
  void PackConstants();
  void Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const override;

  cpu::Isa isa_ = cpu::Isa::kScalar;
  int threads_ = 1;
  OrtMemoryInfo* memory_ = nullptr;
  std::unique_ptr<void, void (*)(void*)> packed_{nullptr, std::free};
};

}  // namespace qkvgemm
