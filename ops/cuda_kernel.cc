#include "ops/cuda_kernel.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace qkvgemm {
namespace {

constexpr int kOldestArchitecture = 75;
constexpr int64_t kMostRows = std::numeric_limits<int32_t>::max();  // blocks of a grid
constexpr size_t kAlignment = 256;                                  // of packed weights and scratch

size_t Padded(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

const char* Advice(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "Free memory of the device, or feed fewer rows at a time";
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorUnsupportedPtxVersion:
      return "Install a newer NVIDIA driver, or build the library with the CUDA toolkit that the driver is "
             "for";
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      return "The library was not built for this device: build it with QKVGEMM_CUDA_ARCHITECTURES naming its "
             "compute capability";
    default:
      return "It may come from an earlier kernel on the device; run with CUDA_LAUNCH_BLOCKING=1 to see which";
  }
}

[[noreturn]] void Fail(cudaError_t error, int ordinal, const std::string& what) {
  cudaGetLastError();  // so that no later check of a launch finds it again
  throw std::runtime_error(what + " on CUDA device " + std::to_string(ordinal) + ": " +
                           cudaGetErrorString(error) + " (" + cudaGetErrorName(error) + "). " +
                           Advice(error) + ".");
}

void Check(cudaError_t error, int ordinal, const char* what) {
  if (error != cudaSuccess) Fail(error, ordinal, what);
}

// Makes a device the calling thread's current one for a while.
class CurrentDevice {
 public:
  explicit CurrentDevice(int ordinal) {
    Check(cudaGetDevice(&before_), ordinal, "asking for the current device");
    if (before_ == ordinal) return;
    Check(cudaSetDevice(ordinal), ordinal, "making the device the current one");
    changed_ = true;
  }
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

// A stream for what happens when a kernel is created. It waits for the legacy default stream, as ONNX
// Runtime's copies of initialisers do.
class CreationStream {
 public:
  explicit CreationStream(int ordinal) { Check(cudaStreamCreate(&stream_), ordinal, "creating a stream"); }
  ~CreationStream() { cudaStreamDestroy(stream_); }
  CreationStream(const CreationStream&) = delete;
  CreationStream& operator=(const CreationStream&) = delete;
  operator cudaStream_t() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  explicit Event(int ordinal) { Check(cudaEventCreate(&event_), ordinal, "creating an event"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  operator cudaEvent_t() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

// Lets the calling thread allocate and wait while another one captures a stream, which would break that
// capture otherwise. It is not about what that thread captures.
class RelaxedCapture {
 public:
  RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~RelaxedCapture() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  RelaxedCapture(const RelaxedCapture&) = delete;
  RelaxedCapture& operator=(const RelaxedCapture&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool IsCapturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  // An error: the legacy default stream while another one is captured. It is not to be waited for.
  if (cudaStreamIsCapturing(stream, &status) == cudaSuccess) return status != cudaStreamCaptureStatusNone;
  cudaGetLastError();
  return true;
}

// What times depend on: the device, its driver, and the toolkit's version that the driver is for.
std::string DeviceName(int ordinal) {
  static auto* const mutex = new std::mutex;
  static auto* const names = new std::map<int, std::string>;
  const std::lock_guard lock(*mutex);
  std::string& name = (*names)[ordinal];
  if (!name.empty()) return name;
  cudaDeviceProp properties{};
  int toolkit = 0;
  Check(cudaGetDeviceProperties(&properties, ordinal), ordinal, "asking for the device's name");
  Check(cudaDriverGetVersion(&toolkit), ordinal, "asking for the driver's version");
  std::string driver;
  std::ifstream("/sys/module/nvidia/version") >> driver;
  name = std::string(properties.name) + " sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor) + ", " + std::to_string(properties.multiProcessorCount) +
         " multiprocessors, driver " + driver + " for CUDA " + std::to_string(toolkit);
  return name;
}

// By cuda::Packing.
constexpr const char* kPackings[] = {"none", "half", "int8", "int8 activations", "tf32"};

// The variable by which cuBLAS, and with it ONNX Runtime's own products, is told to leave float32 as it is.
bool MayRoundToTf32() {
  const char* value = std::getenv("NVIDIA_TF32_OVERRIDE");
  return value == nullptr || std::string_view(value) != "0";
}

bool IsOnHost(const OrtApi& api, const OrtValue* value) {
  const OrtMemoryInfo* memory = nullptr;
  ThrowIfError(api.GetTensorMemoryInfo(value, &memory));
  OrtMemoryInfoDeviceType type = OrtMemoryInfoDeviceType_CPU;
  api.MemoryInfoGetDeviceType(memory, &type);
  return type == OrtMemoryInfoDeviceType_CPU;
}

size_t BytesOf(const TensorInfo& info) {
  DType type;
  if (!ToDType(info.type, &type)) return 0;
  size_t bytes = SizeOf(type);
  for (const int64_t dim : info.dims) bytes *= static_cast<size_t>(dim);
  return bytes;
}

// Shared by the kernels of one arena, which its memory info stands for: that belongs to the arena.
std::shared_ptr<std::atomic<size_t>> MostScratchOf(const OrtMemoryInfo* arena) {
  static auto* const mutex = new std::mutex;
  static auto* const all = new std::map<const OrtMemoryInfo*, std::weak_ptr<std::atomic<size_t>>>;
  const std::lock_guard lock(*mutex);
  std::erase_if(*all, [](const auto& entry) { return entry.second.expired(); });
  std::shared_ptr<std::atomic<size_t>> most = (*all)[arena].lock();
  if (most == nullptr) (*all)[arena] = most = std::make_shared<std::atomic<size_t>>(0);
  return most;
}

}  // namespace

// Scratch memory of one call, from the arena of ONNX Runtime's CUDA provider, and on the call's stream: the
// arena remembers the stream with the block, and until the run has ended gives it to work on that stream
// only, which the device does in order. So the block can be given back as soon as the kernels are launched,
// as the provider's own kernels do. OrtApi::AllocatorAlloc knows no stream: its block would be free for
// another run's stream at once.
class CudaKernel::Scratch {
 public:
  Scratch(const CudaKernel& kernel, const OrtKernelContext* context, size_t bytes) : kernel_(kernel) {
    if (bytes == 0) return;
    bytes += kAlignment;
    ProveThereIs(bytes);
    ThrowIfError(kernel_.api_.KernelContext_GetScratchBuffer(context, kernel_.memory_, bytes, &block_));
  }
  ~Scratch() {
    if (block_ == nullptr) return;
    OrtStatus* status = kernel_.api_.AllocatorFree(kernel_.allocator_.get(), block_);
    if (status != nullptr) kernel_.api_.ReleaseStatus(status);
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* Data() const { return static_cast<char*>(AlignUp(block_, kAlignment)); }

 private:
  // Where there is no memory, KernelContext_GetScratchBuffer ends the process (ONNX Runtime 1.29 and before:
  // it throws and is noexcept), while AllocatorAlloc returns an error. So a call that needs more than any of
  // the arena's kernels before asks the one that can say no, and leaves the block to the other.
  void ProveThereIs(size_t bytes) {
    size_t most = *kernel_.most_scratch_;
    if (bytes <= most) return;
    void* block = nullptr;
    ThrowIfError(kernel_.api_.AllocatorAlloc(kernel_.allocator_.get(), bytes, &block));
    ThrowIfError(kernel_.api_.AllocatorFree(kernel_.allocator_.get(), block));
    while (most < bytes && !kernel_.most_scratch_->compare_exchange_weak(most, bytes)) {
    }
  }

  const CudaKernel& kernel_;
  void* block_ = nullptr;
};

void CudaKernel::FreeDevice::operator()(void* memory) const {
  int before = 0;
  const bool other = cudaGetDevice(&before) == cudaSuccess && before != ordinal;
  if (other) cudaSetDevice(ordinal);
  cudaFree(memory);  // waits for what runs; fails where the driver is gone, at the end of the process
  if (other) cudaSetDevice(before);
  cudaGetLastError();
}

CudaKernel::CudaKernel(const OrtApi& api, const OrtKernelInfo* info, tuning::Mode mode)
    : Kernel(api, info), allocator_(nullptr, {&api}), packed_(nullptr, {0}), mode_(mode) {
  OrtAllocator* allocator = nullptr;
  ThrowIfError(api_.KernelInfoGetAllocator(info, OrtMemTypeDefault, &allocator));
  allocator_.reset(allocator);
  ThrowIfError(api_.AllocatorGetInfo(allocator, &memory_));
  ThrowIfError(api_.MemoryInfoGetId(memory_, &ordinal_));
  most_scratch_ = MostScratchOf(memory_);
  const CurrentDevice current(ordinal_);
  Check(cuda::GetDevice(ordinal_, &device_), ordinal_, "preparing kernels");
  device_.tf32 = MayRoundToTf32();
  if (device_.architecture < kOldestArchitecture)
    throw std::runtime_error("expected a device of compute capability 7.5 or newer, found " +
                             std::to_string(device_.architecture / 10) + "." +
                             std::to_string(device_.architecture % 10) + " (CUDA device " +
                             std::to_string(ordinal_) + "). Run the model without the CUDA provider.");
  PackConstants(info);
}

// From cudaMalloc and not from ONNX Runtime's arena: these live as long as the session, need the very size,
// and are made before the first run.
CudaKernel::DeviceMemory CudaKernel::Allocate(size_t bytes, const char* what) const {
  void* memory = nullptr;
  const cudaError_t error = bytes > 0 ? cudaMalloc(&memory, bytes) : cudaSuccess;
  if (error != cudaSuccess)
    Fail(error, ordinal_, "allocating " + std::to_string(bytes) + " bytes for " + what);
  return DeviceMemory(memory, {ordinal_});
}

// The problem of a call without rows, where all but the input is constant.
bool CudaKernel::ConstantProblem(const OrtKernelInfo* info, Problem* problem, int64_t* only_split) const {
  TensorInfo infos[kInputCount];
  for (size_t i = kInput + 1; i < kInputCount; ++i) {
    if (!constants_[i]) return false;
    infos[i] = constants_[i]->info;
  }
  const int64_t k = WeightProblem(attributes_, infos[kWeight], infos[kScale], infos[kZeroPoint]).k;
  const int64_t dims[] = {0, k};
  OrtTypeInfo* type = nullptr;
  ThrowIfError(api_.KernelInfo_GetInputTypeInfo(info, kInput, &type));
  const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> owned(type, api_.ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  ThrowIfError(api_.CastTypeInfoToTensorInfo(type, &tensor));
  ThrowIfError(api_.GetTensorElementType(tensor, &infos[kInput].type));
  infos[kInput].present = true;
  infos[kInput].dims = dims;
  *problem = FullProblem(attributes_, infos, only_split);
  return true;
}

void CudaKernel::PackConstants(const OrtKernelInfo* info) {
  Problem problem;
  int64_t only_split = 0;
  if (!ConstantProblem(info, &problem, &only_split)) return;
  packing_ = cuda::ChoosePacking(problem, device_);
  if (packing_ == cuda::Packing::kNone) return;
  const RelaxedCapture relaxed;  // another session's stream may be captured meanwhile
  Check(cudaDeviceSynchronize(), ordinal_, "waiting for the weights");  // whichever stream brings them
  const CreationStream stream(ordinal_);
  const void* data[kInputCount] = {};
  std::vector<DeviceMemory> copies;
  for (size_t i = kInput + 1; i < kInputCount; ++i) {
    const Constant& constant = *constants_[i];
    data[i] = ReadData(api_, constant.value);
    if (constant.value == nullptr || !IsOnHost(api_, constant.value)) continue;
    const size_t bytes = BytesOf(constant.info);
    copies.push_back(Allocate(bytes, kInputNames[i]));
    Check(cudaMemcpyAsync(copies.back().get(), data[i], bytes, cudaMemcpyHostToDevice, stream), ordinal_,
          "copying weights");
    data[i] = copies.back().get();
  }
  packed_ = Allocate(cuda::PackedBytes(problem, packing_), "packed weights");
  Check(cuda::Pack(problem, InputOperands(data), packing_, packed_.get(), stream), ordinal_,
        "packing weights");
  Check(cudaStreamSynchronize(stream), ordinal_, "packing weights");
}

// The name of the plan that was timed to be best; null where estimates decide. The caller holds the mutex.
const std::string* CudaKernel::TunedName(const Call& call, const std::vector<cuda::Plan>& plans) const {
  if (mode_ == tuning::Mode::kOff) return nullptr;
  const auto bucket = std::pair(tuning::RowBucket(call.problem.m), call.aligned);
  auto known = tuned_.find(bucket);
  if (known == tuned_.end()) {
    const std::string packing =
        std::string(kPackings[static_cast<int>(packing_)]) + (call.aligned ? ", aligned" : ", not aligned");
    const std::string key = tuning::KeyOf(DeviceName(ordinal_), call.problem, packing);
    const auto serves = [&plans](const tuning::Entry& entry) {
      return std::ranges::any_of(
          plans, [&entry](const cuda::Plan& plan) { return cuda::ToString(plan) == entry.plan; });
    };
    tuning::Cache& cache = tuning::SharedCache();
    std::optional<tuning::Entry> entry = cache.Find(key);
    if (mode_ == tuning::Mode::kOn && !(entry && serves(*entry))) {
      // What is captured does not run. A later call, or that of another session, may time.
      if (IsCapturing(call.stream)) return nullptr;
      entry = cache.FindOrTime(key, serves, [&] { return Time(call, plans); });
    }
    known = tuned_.emplace(bucket, entry ? entry->plan : "").first;
  }
  return &known->second;
}

// The operands are those of the call, which writes its outputs again afterwards.
std::optional<tuning::Entry> CudaKernel::Time(const Call& call,
                                              const std::vector<cuda::Plan>& alternatives) const {
  try {
    const RelaxedCapture relaxed;
    std::vector<cuda::Plan> plans;
    std::vector<std::string> names;
    size_t scratch_bytes = 0;
    for (const cuda::Plan& plan : alternatives) {
      // Within a family they come in the order of their estimates.
      constexpr std::ptrdiff_t kMostOfFamily = 4;
      if (std::ranges::count(plans, plan.family, &cuda::Plan::family) == kMostOfFamily) continue;
      plans.push_back(plan);
      names.push_back(cuda::ToString(plan));
      scratch_bytes = std::max(scratch_bytes, cuda::ScratchBytes(call.problem, plan));
    }
    int l2_bytes = 0;
    Check(cudaDeviceGetAttribute(&l2_bytes, cudaDevAttrL2CacheSize, ordinal_), ordinal_, "timing plans");
    const Scratch scratch(*this, call.context, scratch_bytes);
    // Written over before each run: weights then come from memory, as in a model of many layers, and the
    // launches of the run are queued by the time that it begins.
    const DeviceMemory cache = Allocate(static_cast<size_t>(l2_bytes), "timing plans");
    const Event begin(ordinal_), end(ordinal_);
    return tuning::TimePlans(names, [&](size_t i) {
      Check(cudaMemsetAsync(cache.get(), 0, static_cast<size_t>(l2_bytes), call.stream), ordinal_,
            "timing plans");
      Check(cudaEventRecord(begin, call.stream), ordinal_, "timing plans");
      Check(cuda::Run(call.problem, call.operands, plans[i], packing_, packed_.get(), scratch.Data(),
                      call.stream),
            ordinal_, "timing plans");
      Check(cudaEventRecord(end, call.stream), ordinal_, "timing plans");
      Check(cudaEventSynchronize(end), ordinal_, "timing plans");
      float milliseconds = 0;
      Check(cudaEventElapsedTime(&milliseconds, begin, end), ordinal_, "timing plans");
      return 1000.0 * milliseconds;
    });
  } catch (const StatusError& e) {
    api_.ReleaseStatus(e.status);
  } catch (const std::exception&) {
  }
  return std::nullopt;  // a run needs no timing: the estimate will do
}

cuda::Plan CudaKernel::PlanFor(const Call& call) const {
  const std::lock_guard lock(planned_mutex_);
  if (planned_.m == call.problem.m && planned_.aligned == call.aligned) return planned_.plan;
  const std::vector<cuda::Plan> plans = cuda::Alternatives(call.problem, device_, packing_, call.aligned);
  cuda::Plan plan = plans.front();
  const std::string* const name = TunedName(call, plans);
  if (name != nullptr) {
    // A name of the bucket that does not serve these rows names none of theirs.
    const auto named =
        std::ranges::find_if(plans, [name](const cuda::Plan& p) { return cuda::ToString(p) == *name; });
    if (named != plans.end()) plan = *named;
  }
  if (name != nullptr || mode_ == tuning::Mode::kOff) planned_ = {call.problem.m, call.aligned, plan};
  return plan;
}

void CudaKernel::Run(OrtKernelContext* context, const Problem& problem, const Operands& operands) const {
  if (problem.m > kMostRows && problem.k > 0)
    throw ContractError{"input 0 'input': expected at most " + std::to_string(kMostRows) +
                        " rows on CUDA, found " + std::to_string(problem.m)};
  const CurrentDevice current(ordinal_);
  void* handle = nullptr;
  ThrowIfError(api_.KernelContext_GetGPUComputeStream(context, &handle));
  const auto stream = static_cast<cudaStream_t>(handle);
  const bool aligned = reinterpret_cast<uintptr_t>(operands.input) % 16 == 0;
  const cuda::Packing packing = packed_ ? packing_ : cuda::ChoosePacking(problem, device_);
  const cuda::Plan plan = packed_ ? PlanFor({context, problem, operands, aligned, stream})
                                  : cuda::MakePlan(problem, device_, packing, aligned);
  const bool pack =
      !packed_ && plan.family != cuda::Family::kGeneric;  // which reads the weights as they come
  const size_t packed_bytes = pack ? Padded(cuda::PackedBytes(problem, packing)) : 0;
  const Scratch scratch(*this, context, packed_bytes + cuda::ScratchBytes(problem, plan));
  const void* packed = packed_.get();
  if (pack) {
    packed = scratch.Data();
    Check(cuda::Pack(problem, operands, packing, scratch.Data(), stream), ordinal_, "packing weights");
  }
  const cudaError_t error =
      cuda::Run(problem, operands, plan, packing, packed, scratch.Data() + packed_bytes, stream);
  if (error != cudaSuccess) Fail(error, ordinal_, "launching plan '" + cuda::ToString(plan) + "'");
}

}  // namespace qkvgemm
