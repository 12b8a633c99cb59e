// CUDA kernels of QKVGemm: the launch interface. Knows neither ONNX Runtime nor Node. All operands are device pointers;
// nothing here synchronises or allocates, so that every call may be captured in a CUDA graph.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cuda {

// The properties of a device that a plan depends on. One query, to be kept by the caller.
cudaError_t GetDevice(int ordinal, Device* device);

// Packed weights for the families that want them: W with gamma folded in, and what beta, bias and the row's mean add to
// a column. Weight, gamma, beta, bias and scale must be constant. 16-byte aligned.
size_t PackedBytes(const Problem& problem);
cudaError_t Pack(const Problem& problem, const Operands& operands, void* packed, cudaStream_t stream);

// Bytes of scratch that Run needs (256-byte aligned buffer wanted).
size_t ScratchBytes(const Problem& problem, const Plan& plan);

// Computes everything: y splits and, where operands.norm is not null, the normalised input. `packed` comes from Pack
// where plan.family wants it (see NeedsPacked). m, n or k of 0 are allowed.
cudaError_t Run(const Problem& problem, const Operands& operands, const Plan& plan, const void* packed, void* scratch,
                cudaStream_t stream);

}  // namespace qkvgemm::cuda
