#include "ops/cpu_kernel.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <stdexcept>
#include <thread>
#include <vector>

#include "ops/cpu/parallel.h"
#include "ops/cpu/plan.h"
#include "ops/file_pages.h"

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

// Threads of its own, for work that comes before ONNX Runtime lends any: a kernel is made without its pool.
constexpr int kMaxPackingThreads = 8;  // as many as saturate memory
struct StartedThreads {
  int count = 1;

  static void Run(void* state, size_t count, void (*fn)(void*, size_t), void* argument) {
    std::atomic<size_t> next{0};
    const auto work = [&] {
      for (size_t i; (i = next++) < count;) fn(argument, i);
    };
    std::vector<std::thread> started;
    try {
      started.reserve(static_cast<size_t>(static_cast<StartedThreads*>(state)->count));
      for (int t = 1; t < static_cast<StartedThreads*>(state)->count; ++t) started.emplace_back(work);
    } catch (const std::exception&) {  // no more threads to be had: those that are there do it
    }
    work();
    for (std::thread& thread : started) thread.join();
  }
};

// The processor's name. Where the system does not tell, as on Arm, the numbers by which it calls the parts.
std::string ProcessorName() {
  static const auto* const name = new std::string([] {
    std::ifstream info("/proc/cpuinfo");
    std::string parts;
    for (std::string line; std::getline(info, line);) {
      const size_t value = line.find(": ");
      if (value == std::string::npos) continue;
      if (line.starts_with("model name")) return line.substr(value + 2);
      if (line.starts_with("CPU implementer") || line.starts_with("CPU part")) {
        if (parts.find(line.substr(value)) == std::string::npos) parts += line.substr(value);
      }
    }
    return "processor" + parts;
  }());
  return *name;
}

// What is written over before a choice is timed, so that weights come from memory, as in a model of many
// layers.
std::vector<char> CacheSized() {
  constexpr long kMost = 64L << 20;
  const long last_level = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return std::vector<char>(static_cast<size_t>(last_level > 0 ? std::min(last_level, kMost) : kMost / 2));
}

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

CpuKernel::CpuKernel(const OrtApi& api, const OrtKernelInfo* info, tuning::Mode mode)
    : Kernel(api, info), threads_(UsableProcessors()), mode_(mode) {
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
  // Less is packed before threads have started.
  constexpr size_t kMinParallelBytes = size_t{4} << 20;
  StartedThreads threads;
  const bool parallel = threads_ > 1 && bytes >= kMinParallelBytes;
  const cpu::ThreadPool pool{&threads, std::min(threads_, kMaxPackingThreads), StartedThreads::Run};
  threads.count = pool.threads;
  cpu::Pack(problem, operands, isa_, parallel ? pool : cpu::ThreadPool{}, packed_.get());
  ReleaseFilePages(operands.weight, static_cast<size_t>(problem.k * problem.n) * SizeOf(problem.tw));
}

cpu::Choice CpuKernel::ChoiceFor(OrtKernelContext* context, const Problem& problem,
                                 const Operands& operands) const {
  // Weights that are packed in each call outweigh any choice.
  if (mode_ == tuning::Mode::kOff || packed_ == nullptr) return {};
  const std::lock_guard lock(choices_mutex_);
  const auto [known, is_new] = choices_.try_emplace(tuning::RowBucket(problem.m));
  if (!is_new) return known->second;
  const std::string device =
      ProcessorName() + " " + cpu::IsaName(isa_) + ", " + std::to_string(threads_) + " threads";
  const std::string key = tuning::KeyOf(device, problem, "panels");
  tuning::Cache& cache = tuning::SharedCache();
  const auto serves = [](const tuning::Entry& entry) { return cpu::ParseChoice(entry.plan).has_value(); };
  const std::optional<tuning::Entry> entry =
      mode_ == tuning::Mode::kOn
          ? cache.FindOrTime(key, serves, [&] { return Time(context, problem, operands); })
          : cache.Find(key);
  if (entry) known->second = cpu::ParseChoice(entry->plan).value_or(cpu::Choice{});
  return known->second;
}

// The operands are those of the call, which writes its outputs again afterwards.
std::optional<tuning::Entry> CpuKernel::Time(OrtKernelContext* context, const Problem& problem,
                                             const Operands& operands) const {
  try {
    OrtThreads threads{api_, context};
    const cpu::ThreadPool pool{&threads, threads_, OrtThreads::Run};
    const std::vector<cpu::Choice> choices = cpu::Choices(problem, isa_, threads_);
    std::vector<std::string> names;
    size_t bytes = 0;
    for (const cpu::Choice& choice : choices) {
      names.push_back(cpu::ToString(choice));
      bytes = std::max(bytes, cpu::ScratchBytes(problem, isa_, threads_, true, choice));
    }
    const Scratch scratch(api_, context, memory_, bytes);
    std::vector<char> cache = CacheSized();
    const int64_t parts = 4 * threads_;
    char value = 0;
    const tuning::Entry entry = tuning::TimePlans(names, [&](size_t i) {
      ++value;
      cpu::ParallelFor(pool, parts, [&](int64_t part) {
        const size_t size = cache.size() / static_cast<size_t>(parts);
        std::memset(cache.data() + static_cast<size_t>(part) * size, value, size);
      });
      const auto begin = std::chrono::steady_clock::now();
      cpu::Run(problem, operands, packed_.get(), isa_, pool, scratch.Data(), choices[i]);
      return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
    });
    if (threads.failure == nullptr) return entry;
    api_.ReleaseStatus(threads.failure);
  } catch (const StatusError& e) {
    api_.ReleaseStatus(e.status);
  } catch (const std::exception&) {
  }
  return std::nullopt;  // a run needs no timing: the default will do
}

void CpuKernel::Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const {
  OrtThreads threads{api_, context};
  const cpu::ThreadPool pool{&threads, threads_, OrtThreads::Run};
  const cpu::Choice choice = ChoiceFor(context, problem, operands);
  const Scratch scratch(api_, context, memory_,
                        cpu::ScratchBytes(problem, isa_, threads_, packed_ != nullptr, choice));
  cpu::Run(problem, operands, packed_.get(), isa_, pool, scratch.Data(), choice);
  ThrowIfError(threads.failure);
}

}  // namespace qkvgemm
