// Output types and shapes, while a model is loaded.
#pragma once

#include <onnxruntime_c_api.h>

namespace qkvgemm {

// OrtCustomOp::InferOutputShapeFn.
OrtStatus* InferShapes(const OrtApi& api, OrtShapeInferContext* context) noexcept;

}  // namespace qkvgemm
