// The op's kernel for the CUDA execution provider. It belongs to the device of its session.
#pragma once

#include <onnxruntime_c_api.h>

#include <atomic>
#include <memory>
#include <mutex>

#include "cuda/qkv_gemm_cuda.h"
#include "ops/kernel.h"

namespace qkvgemm {

class CudaKernel final : public Kernel {
 public:
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  // Weights are packed here, once, where they and all vectors are constants; else in each call.
  CudaKernel(const OrtApi& api, const OrtKernelInfo* info);

 private:
  class Scratch;
  struct ReleaseAllocator {
    const OrtApi* api;
    void operator()(OrtAllocator* allocator) const { api->ReleaseAllocator(allocator); }
  };
  struct FreeDevice {
    int ordinal;
    void operator()(void* memory) const;
  };
  using DeviceMemory = std::unique_ptr<void, FreeDevice>;

  DeviceMemory Allocate(size_t bytes, const char* what) const;
  bool ConstantProblem(const OrtKernelInfo* info, Problem* problem, int64_t* only_split) const;
  void PackConstants(const OrtKernelInfo* info);
  cuda::Plan PlanFor(const Problem& problem, bool aligned) const;
  void Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const override;

  // What was planned last for the constant weights, since the next call often has as many rows.
  struct Planned {
    int64_t m = -1;
    bool aligned = false;
    cuda::Plan plan;
  };

  std::unique_ptr<OrtAllocator, ReleaseAllocator> allocator_;  // of the provider's arena on the device
  const OrtMemoryInfo* memory_ = nullptr;                      // the allocator's
  int ordinal_ = 0;
  cuda::Device device_;
  cuda::Packing packing_ = cuda::Packing::kNone;
  DeviceMemory packed_;
  mutable std::mutex planned_mutex_;
  mutable Planned planned_;
  std::shared_ptr<std::atomic<size_t>> most_scratch_;  // of all kernels of the arena, in bytes
};

}  // namespace qkvgemm
