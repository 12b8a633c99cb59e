// A custom op that does nothing but ask for its output, the least that any of them costs:
// com.deepspeed.bench.NoOp, x [rows, k] -> y [rows, columns].
#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

namespace {

struct NoOpKernel {
  explicit NoOpKernel(const OrtKernelInfo* info)
      : columns(Ort::ConstKernelInfo(info).GetAttribute<int64_t>("columns")) {}
  void Compute(OrtKernelContext* context) const {
    Ort::KernelContext call(context);
    const int64_t shape[] = {call.GetInput(0).GetTensorTypeAndShapeInfo().GetShape()[0], columns};
    call.GetOutput(0, shape, 2);
  }
  int64_t columns;
};

struct NoOp : Ort::CustomOpBase<NoOp, NoOpKernel> {
  void* CreateKernel(const OrtApi&, const OrtKernelInfo* info) const { return new NoOpKernel(info); }
  const char* GetName() const { return "NoOp"; }
  size_t GetInputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetInputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
  size_t GetOutputTypeCount() const { return 1; }
  ONNXTensorElementDataType GetOutputType(size_t) const { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; }
};

}  // namespace

extern "C" __attribute__((visibility("default"))) OrtStatus* ORT_API_CALL
RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  const OrtApi* const api = base->GetApi(22);  // of the oldest runtime that loads libraries here
  Ort::InitApi(api);
  try {
    static const NoOp op;
    static Ort::CustomOpDomain domain("com.deepspeed.bench");
    static const bool added = (domain.Add(&op), true);
    static_cast<void>(added);
    Ort::UnownedSessionOptions(options).Add(domain);
    return nullptr;
  } catch (const Ort::Exception& e) {
    return api->CreateStatus(e.GetOrtErrorCode(), e.what());
  }
}
