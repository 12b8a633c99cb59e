// CUDA kernels of QKVGemm: the launch interface. Knows neither ONNX Runtime nor Node. All operands are device
// pointers; apart from GetDevice nothing here synchronises or allocates, so that every call may be captured
// in a CUDA graph. Functions may be called from any number of threads at once.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cuda {

// The properties of a device that plans depend on; also raises the kernels' shared-memory limits there. To be
// called once for each device before Run, outside of stream capture.
cudaError_t GetDevice(int ordinal, Device* device);

// Packed weights: W as `packing` says, and what gamma, beta, bias, scale and zero_point add to each column.
// All of them are read once, here; problem.m does not matter. `packed` is 256-byte aligned device memory of
// PackedBytes bytes.
size_t PackedBytes(const Problem& problem, Packing packing);
cudaError_t Pack(const Problem& problem, const Operands& operands, Packing packing, void* packed,
                 cudaStream_t stream);

// Bytes of 256-byte aligned device memory that Run needs beside.
size_t ScratchBytes(const Problem& problem, const Plan& plan);

// Computes operands.y and, where operands.norm is not null, the normalised input. `packed`: what Pack made
// (null for Packing::kNone). The plan must serve the problem and the packing. m, n and k may be 0.
cudaError_t Run(const Problem& problem, const Operands& operands, const Plan& plan, Packing packing,
                const void* packed, void* scratch, cudaStream_t stream);

}  // namespace qkvgemm::cuda
