// The op's kernel for the CUDA execution provider. It belongs to the device of its session.
#pragma once

#include <onnxruntime_c_api.h>

#include <atomic>
#include <memory>

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
  void Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const override;

  std::unique_ptr<OrtAllocator, ReleaseAllocator> allocator_;  // of the provider's arena on the device
  const OrtMemoryInfo* memory_ = nullptr;                      // the allocator's
  int ordinal_ = 0;
  cuda::Device device_;
  cuda::Packing packing_ = cuda::Packing::kNone;
  DeviceMemory packed_;
  mutable std::atomic<size_t> most_scratch_{0};  // bytes that the arena has been seen to have
};

}  // namespace qkvgemm
