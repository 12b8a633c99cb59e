// The library's one exported function, and the table of what it registers.
#include <onnxruntime_c_api.h>

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

namespace qkvgemm {
namespace {

constexpr const char* kOpName = "com.deepspeed.QKVGemm";

// One per runtime: a process may hold several copies of ONNX Runtime, each with its own table, and shape
// inference gets nothing but the op.
struct Op : OrtCustomOp {
  const OrtApi* api;
};

template <typename ProviderKernel>
OrtStatus* ORT_API_CALL CreateKernel(const OrtCustomOp*, const OrtApi* api, const OrtKernelInfo* info,
                                     void** kernel) {
  *kernel = nullptr;
  std::string where;
  if (OrtStatus* status = Guard(*api, kOpName, [&] { where = WhereOf(*api, info); })) return status;
  return Guard(*api, where.c_str(), [&] { *kernel = static_cast<Kernel*>(new ProviderKernel(*api, info)); });
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

// What one runtime is given. Never released: ONNX Runtime keeps pointers to the domain and its ops for as
// long as any session lives.
struct Registration {
  std::vector<std::unique_ptr<Op>> ops;
  OrtCustomOpDomain* domain = nullptr;
};

// The domain for one runtime, made once and shared by its sessions, which only read it.
OrtCustomOpDomain* DomainOf(const OrtApi* api) {
  static auto* const mutex = new std::mutex;
  static auto* const all = new std::map<const OrtApi*, Registration>;
  const std::lock_guard lock(*mutex);
  Registration& known = (*all)[api];
  if (known.domain != nullptr) return known.domain;
  Registration made;
  for (const auto describe : kTable) {
    auto op = std::make_unique<Op>();
    op->version = kApiVersion;
    op->api = api;
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
  return Guard(*api, kOpName, [&] { ThrowIfError(api->AddCustomOpDomain(options, DomainOf(api))); });
}
