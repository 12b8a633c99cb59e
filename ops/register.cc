// The library's one exported function, and the table of what it registers.
#include <onnxruntime_c_api.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "ops/contract.h"
#include "ops/cpu_kernel.h"
#ifdef QKVGEMM_CUDA
#include "ops/cuda_kernel.h"
#endif
#include "ops/ort_util.h"
#include "ops/shape_inference.h"
#include "ops/tuning.h"

namespace qkvgemm {
namespace {

constexpr const char* kOpName = "com.deepspeed.QKVGemm";

// One per runtime: a process may hold several copies of ONNX Runtime, each with its own table, and shape
// inference gets nothing but the op.
struct Op : OrtCustomOp {
  const OrtApi* api;
  tuning::Mode tuning;
};

template <typename ProviderKernel>
OrtStatus* ORT_API_CALL CreateKernel(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info,
                                     void** kernel) {
  *kernel = nullptr;
  std::string where;
  if (OrtStatus* status = Guard(*api, kOpName, [&] { where = WhereOf(*api, info); })) return status;
  const tuning::Mode mode = static_cast<const Op*>(op)->tuning;
  return Guard(*api, where.c_str(),
               [&] { *kernel = static_cast<Kernel*>(new ProviderKernel(*api, info, mode)); });
}

void DescribeQkvGemm(Op& op) {
  using Self = const OrtCustomOp*;
  op.GetName = [](Self) { return "QKVGemm"; };
  op.GetStartVersion = [](Self) { return 1; };
  op.GetEndVersion = [](Self) { return 1; };

  // Element types are the contract's business: inputs are declared as any type and checked with the shapes.
  op.GetInputTypeCount = [](Self) { return static_cast<size_t>(kInputCount); };
  op.GetInputType = [](Self, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetInputCharacteristic = [](Self, size_t i) {
    return i <= kWeight ? OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_REQUIRED
                        : OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_OPTIONAL;
  };
  op.GetInputMemoryType = [](Self, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](Self) { return 0; };
  op.GetVariadicInputHomogeneity = [](Self) { return 0; };

  // y, norm and any number of further splits, as one variadic parameter: for a required output ONNX Runtime
  // guesses the last input's type before it asks for shapes, which is wrong where float16 meets float32
  // vectors.
  op.GetOutputTypeCount = [](Self) -> size_t { return 1; };
  op.GetOutputType = [](Self, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetOutputCharacteristic = [](Self, size_t) {
    return OrtCustomOpInputOutputCharacteristic::INPUT_OUTPUT_VARIADIC;
  };
  op.GetVariadicOutputMinArity = [](Self) { return 1; };
  op.GetVariadicOutputHomogeneity = [](Self) { return 0; };
  op.InferOutputShapeFn = [](Self self, OrtShapeInferContext* context) {
    return InferShapes(*static_cast<const Op*>(self)->api, context);
  };
}

template <typename ProviderKernel>
void Describe(Op& op) {
  DescribeQkvGemm(op);
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return ProviderKernel::kProvider; };
  op.CreateKernelV2 = CreateKernel<ProviderKernel>;
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return static_cast<const Kernel*>(kernel)->Compute(context);
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
}

// What the library registers: one row per execution provider. Sessions take the one of theirs.
constexpr void (*kTable[])(Op&) = {
    Describe<CpuKernel>,
#ifdef QKVGEMM_CUDA
    Describe<CudaKernel>,
#endif
};

// What one runtime is given, for the sessions of one mode. Never released: ONNX Runtime keeps pointers to the
// domain and its ops for as long as any session lives.
struct Registration {
  std::vector<std::unique_ptr<Op>> ops;
  OrtCustomOpDomain* domain = nullptr;
};

// The domain for one runtime and mode, made once and shared by its sessions, which only read it. A kernel
// learns of its session's config entries through its op alone: KernelInfo_GetConfigEntries is younger than
// the oldest runtime.
OrtCustomOpDomain* DomainOf(const OrtApi* api, tuning::Mode mode) {
  static auto* const mutex = new std::mutex;
  static auto* const all = new std::map<std::pair<const OrtApi*, tuning::Mode>, Registration>;
  const std::lock_guard lock(*mutex);
  Registration& known = (*all)[{api, mode}];
  if (known.domain != nullptr) return known.domain;
  Registration made;
  for (const auto describe : kTable) {
    auto op = std::make_unique<Op>();
    op->version = kApiVersion;
    op->api = api;
    op->tuning = mode;
    describe(*op);
    made.ops.push_back(std::move(op));
  }
  ThrowIfError(api->CreateCustomOpDomain("com.deepspeed", &made.domain));
  for (const auto& op : made.ops) {
    if (OrtStatus* status = api->CustomOpDomain_Add(made.domain, op.get())) {
      api->ReleaseCustomOpDomain(made.domain);
      throw StatusError{status};
    }
  }
  known = std::move(made);
  return known.domain;
}

// What the session asks for, else the environment variable, else `cached`.
tuning::Mode ModeOf(const OrtApi& api, const OrtSessionOptions* options) {
  constexpr const char* kEntry = "qkvgemm.tune";
  constexpr const char* kVariable = "QKVGEMM_TUNE";
  tuning::Mode mode = tuning::Mode::kCached;
  int present = 0;
  ThrowIfError(api.HasSessionConfigEntry(options, kEntry, &present));
  std::string value;
  if (present) {
    size_t size = 0;
    ThrowIfError(api.GetSessionConfigEntry(options, kEntry, nullptr, &size));
    value.resize(size);
    ThrowIfError(api.GetSessionConfigEntry(options, kEntry, value.data(), &size));
    value.resize(size == 0 ? 0 : size - 1);  // the size counts the terminating zero
  } else {
    const char* const variable = std::getenv(kVariable);
    if (variable == nullptr || *variable == '\0') return mode;
    value = variable;
  }
  if (!tuning::ParseMode(value, &mode))
    throw ContractError{std::string(present ? "session config entry '" : "environment variable '") +
                        (present ? kEntry : kVariable) + "': expected off, cached or on, found '" + value +
                        "'"};
  return mode;
}

}  // namespace
}  // namespace qkvgemm

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace qkvgemm;
  const OrtApi* api = base->GetApi(kApiVersion);
  if (api == nullptr) {
    const OrtApi& oldest = *base->GetApi(1);
    return Guard(oldest, kOpName, [&] {
      throw ContractError{"needs ONNX Runtime 1." + std::to_string(kApiVersion) + " or newer, this is " +
                          base->GetVersionString()};
    });
  }
  return Guard(*api, kOpName,
               [&] { ThrowIfError(api->AddCustomOpDomain(options, DomainOf(api, ModeOf(*api, options)))); });
}
