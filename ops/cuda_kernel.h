// The op's kernel for the CUDA execution provider. It belongs to the device of its session.
#pragma once

#include <onnxruntime_c_api.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cuda/qkv_gemm_cuda.h"
#include "ops/kernel.h"
#include "ops/tuning.h"

namespace qkvgemm {

class CudaKernel final : public Kernel {
 public:
  static constexpr const char* kProvider = "CUDAExecutionProvider";

  // Weights are packed here, once, where they and all vectors are constants; else in each call.
  CudaKernel(const OrtApi& api, const OrtKernelInfo* info, tuning::Mode mode);

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
  // The call that a plan is for, with packed weights.
  struct Call {
    OrtKernelContext* context;
    const Problem& problem;
    const Operands& operands;
    bool aligned;
    cudaStream_t stream;
  };
  cuda::Plan PlanFor(const Call& call) const;
  const std::string* TunedName(const Call& call, const std::vector<cuda::Plan>& plans) const;
  std::optional<tuning::Entry> Time(const Call& call, const std::vector<cuda::Plan>& alternatives) const;
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
  tuning::Mode mode_;
  mutable std::mutex planned_mutex_;
  // Names of timed plans, empty where there is none, by buckets of rows and alignment.
  mutable std::map<std::pair<int64_t, bool>, std::string> tuned_;
  mutable Planned planned_;
  std::shared_ptr<std::atomic<size_t>> most_scratch_;  // of all kernels of the arena, in bytes
};

}  // namespace qkvgemm
