#include "ops/cpu_kernel.h"

#include <sched.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "ops/attributes.h"
#include "ops/ort_util.h"

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
    aligned_ = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(block_) + 63) & ~uintptr_t{63});
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

CpuKernel::CpuKernel(const OrtApi& api, const OrtKernelInfo* info)
    : api_(api),
      where_(WhereOf(api, info)),
      attributes_(ReadAttributes(api, info)),
      threads_(UsableProcessors()) {
  std::string error;
  if (!cpu::SelectIsa(std::getenv("QKVGEMM_ISA"), &isa_, &error)) throw ContractError{error};
  size_t outputs = 0;
  ThrowIfError(api_.KernelInfo_GetOutputCount(info, &outputs));
  if (outputs > OutputSlots(attributes_))
    throw ContractError{"expected at most " + std::to_string(OutputSlots(attributes_)) +
                        " outputs, as attributes 'splits' and 'emit_norm' say, found " +
                        std::to_string(outputs)};
  if (outputs > kNormSlot && !attributes_.emit_norm) {
    // Nothing is written there, and ONNX Runtime would hand its caller a value that does not exist.
    size_t length = 0;
    ThrowIfError(api_.KernelInfo_GetOutputName(info, kNormSlot, nullptr, &length));
    std::string name(length, '\0');
    ThrowIfError(api_.KernelInfo_GetOutputName(info, kNormSlot, name.data(), &length));
    if (length > 1)  // it counts the terminating zero
      throw ContractError{"output 1 'norm': expected no name unless attribute 'emit_norm' is 1, found '" +
                          std::string(name.c_str()) + "'"};
  }
  ReadConstants(info);
  ThrowIfError(api_.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
}

CpuKernel::~CpuKernel() {
  if (memory_ != nullptr) api_.ReleaseMemoryInfo(memory_);
}

void CpuKernel::ReadConstants(const OrtKernelInfo* info) {
  size_t input_count = 0;
  ThrowIfError(api_.KernelInfo_GetInputCount(info, &input_count));
  const void* data[kInputCount] = {};
  for (size_t i = 0; i < kInputCount; ++i) {
    size_t length = 0;
    if (i < input_count) ThrowIfError(api_.KernelInfo_GetInputName(info, i, nullptr, &length));
    if (length <= 1) {  // an optional input left out or left empty
      constants_[i] = TensorInfo{};
      continue;
    }
    int constant = 0;
    const OrtValue* value = nullptr;
    ThrowIfError(api_.KernelInfoGetConstantInput_tensor(info, i, &constant, &value));
    if (!constant) continue;
    constants_[i] = ReadInfo(api_, value, arena_);
    data[i] = ReadData(api_, value);
  }
  if (!constants_[kWeight] || !constants_[kScale] || !constants_[kZeroPoint]) return;
  // What concerns the weights alone is said here, before the first run.
  const Problem problem =
      WeightProblem(attributes_, *constants_[kWeight], *constants_[kScale], *constants_[kZeroPoint]);
  CheckSplits(attributes_, problem.n);
  Operands operands;
  operands.weight = data[kWeight];
  operands.scale = data[kScale];
  operands.zero_point = data[kZeroPoint];
  const size_t bytes = cpu::PackedBytes(problem, isa_);
  packed_.reset(cpu::AllocatePacked(bytes));
  if (packed_ == nullptr)
    throw std::runtime_error(
        "out of memory: input 1 'weight' takes " + std::to_string(bytes) +
        " bytes in the form that the kernel reads; free some, or store it in fewer bits");
  cpu::Pack(problem, operands, isa_, cpu::ThreadPool{}, packed_.get());
}

OrtStatus* CpuKernel::Compute(OrtKernelContext* context) const noexcept {
  return Guard(api_, where_.c_str(), [&] { Run(context); });
}

void CpuKernel::Run(OrtKernelContext* context) const {
  size_t input_count = 0, output_count = 0;
  ThrowIfError(api_.KernelContext_GetInputCount(context, &input_count));
  ThrowIfError(api_.KernelContext_GetOutputCount(context, &output_count));
  Arena arena;
  TensorInfo infos[kInputCount];
  const void* data[kInputCount] = {};
  for (size_t i = 0; i < input_count && i < kInputCount; ++i) {
    const OrtValue* value = nullptr;
    ThrowIfError(api_.KernelContext_GetInput(context, i, &value));
    infos[i] = constants_[i] ? *constants_[i] : ReadInfo(api_, value, arena);
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
  Operands operands;
  operands.input = data[kInput];
  operands.weight = data[kWeight];
  operands.gamma = data[kGamma];
  operands.beta = data[kBeta];
  operands.bias = data[kBias];
  operands.scale = data[kScale];
  operands.zero_point = data[kZeroPoint];
  const std::span<void*> y = arena.New<void*>(static_cast<size_t>(problem.num_splits));
  for (size_t s = 0; s < y.size(); ++s) y[s] = output(SlotOfSplit(s), problem.splits[s]);
  operands.y = y.data();
  if (attributes_.emit_norm) operands.norm = output(kNormSlot, problem.k);
  if (problem.m == 0) return;

  OrtThreads threads{api_, context};
  const cpu::ThreadPool pool{&threads, threads_, OrtThreads::Run};
  const Scratch scratch(api_, context, memory_,
                        cpu::ScratchBytes(problem, isa_, threads_, packed_ != nullptr));
  cpu::Run(problem, operands, packed_.get(), isa_, pool, scratch.Data());
  ThrowIfError(threads.failure);
}

}  // namespace qkvgemm
