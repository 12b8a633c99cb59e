#include "ops/cpu_kernel.h"

#include <sched.h>

#include <algorithm>
#include <stdexcept>
#include <thread>

namespace qkvgemm {
namespace {

// ONNX Runtime does not say how many threads its pool has; it is at most the processors this process may use,
// and the plan only needs to know how finely to cut the work.
int UsableProcessors() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  // More processors than the set holds. The answer may be 0: not known.
  return std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
}

// ThreadPool over ONNX Runtime's intra-op threads. The first failure is kept and reported after the run.
struct OrtThreads {
  const OrtApi& api;
  const OrtKernelContext* context;
  OrtStatus* failure = nullptr;

  static void Run(void* state, size_t count, void (*fn)(void*, size_t), void* argument) {
    auto* self = static_cast<OrtThreads*>(state);
    OrtStatus* status = self->api.KernelContext_ParallelFor(self->context, fn, count, 0, argument);
    if (status == nullptr) return;
    if (self->failure == nullptr) {
      self->failure = status;
    } else {
      self->api.ReleaseStatus(status);
    }
  }
};

// Memory from ONNX Runtime's allocator, aligned to a cache line.
class Scratch {
 public:
  Scratch(const OrtApi& api, const OrtKernelContext* context, const OrtMemoryInfo* memory, size_t bytes)
      : api_(api) {
    if (bytes == 0) return;
    ThrowIfError(api_.KernelContext_GetAllocator(context, memory, &allocator_));
    if (OrtStatus* status = api_.AllocatorAlloc(allocator_, bytes + 64, &block_)) {
      api_.ReleaseAllocator(allocator_);
      throw StatusError{status};
    }
    aligned_ = AlignUp(block_, 64);
  }
  ~Scratch() {
    if (allocator_ == nullptr) return;
    if (OrtStatus* status = api_.AllocatorFree(allocator_, block_)) api_.ReleaseStatus(status);
    api_.ReleaseAllocator(allocator_);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  void* Data() const { return aligned_; }

 private:
  const OrtApi& api_;
  OrtAllocator* allocator_ = nullptr;
  void* block_ = nullptr;
  void* aligned_ = nullptr;
};

}  // namespace

CpuKernel::CpuKernel(const OrtApi& api, const OrtKernelInfo* info)
    : Kernel(api, info), threads_(UsableProcessors()) {
  std::string error;
  if (!cpu::SelectIsa(std::getenv("QKVGEMM_ISA"), &isa_, &error)) throw ContractError{error};
  PackConstants();
  ThrowIfError(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
}

CpuKernel::~CpuKernel() {
  if (memory_ != nullptr) api_.ReleaseMemoryInfo(memory_);
}

void CpuKernel::PackConstants() {
  const auto &weight = constants_[kWeight], &scale = constants_[kScale], &zero_point = constants_[kZeroPoint];
  if (!weight || !scale || !zero_point) return;
  // What concerns the weights alone is said here, before the first run.
  const Problem problem = WeightProblem(attributes_, weight->info, scale->info, zero_point->info);
  CheckSplits(attributes_, problem.n);
  Operands operands;
  operands.weight = ReadData(api_, weight->value);
  operands.scale = ReadData(api_, scale->value);
  operands.zero_point = ReadData(api_, zero_point->value);
  const size_t bytes = cpu::PackedBytes(problem, isa_);
  packed_.reset(cpu::AllocatePacked(bytes));
  if (packed_ == nullptr)
    throw std::runtime_error(
        "out of memory: input 1 'weight' takes " + std::to_string(bytes) +
        " bytes in the form that the kernel reads; free some, or store it in fewer bits");
  cpu::Pack(problem, operands, isa_, cpu::ThreadPool{}, packed_.get());
}

void CpuKernel::Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const {
  OrtThreads threads{api_, context};
  const cpu::ThreadPool pool{&threads, threads_, OrtThreads::Run};
  const Scratch scratch(api_, context, memory_,
                        cpu::ScratchBytes(problem, isa_, threads_, packed_ != nullptr));
  cpu::Run(problem, operands, packed_.get(), isa_, pool, scratch.Data());
  ThrowIfError(threads.failure);
}

}  // namespace qkvgemm
