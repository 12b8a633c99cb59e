// The node's attributes, read from the two places where ONNX Runtime shows them.
#pragma once

#include <onnxruntime_c_api.h>

#include "ops/contract.h"

namespace qkvgemm {

// While a kernel is created: all of them, checked. Throws ContractError and StatusError.
Attributes ReadAttributes(const OrtApi& api, const OrtKernelInfo* info);

// During shape inference: those that decide about shapes (transposed, splits, emit_norm); others keep their
// defaults.
Attributes ReadShapeAttributes(const OrtApi& api, const OrtShapeInferContext* context);

}  // namespace qkvgemm
