// The op's kernel for the CPU execution provider.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/kernel.h"
#include "ops/tuning.h"

namespace qkvgemm {

class CpuKernel final : public Kernel {
 public:
  static constexpr const char* kProvider = nullptr;  // the CPU's

  // Constant weights are packed here, once.
  CpuKernel(const OrtApi& api, const OrtKernelInfo* info, tuning::Mode mode);
  ~CpuKernel() override;

 private:
  void PackConstants();
  // Both compute; the latter times choices as it does.
  cpu::Choice ChoiceFor(OrtKernelContext* context, const Problem& problem, const Operands& operands) const;
  std::optional<tuning::Entry> Time(OrtKernelContext* context, const Problem& problem,
                                    const Operands& operands) const;
  void Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const override;

  cpu::Isa isa_ = cpu::Isa::kScalar;
  int threads_ = 1;
  tuning::Mode mode_;
  mutable std::mutex choices_mutex_;
  mutable std::map<int64_t, cpu::Choice> choices_;  // by buckets of rows
  OrtMemoryInfo* memory_ = nullptr;
  std::unique_ptr<void, void (*)(void*)> packed_{nullptr, std::free};
};

}  // namespace qkvgemm
