// What each kernel family provides to the launch interface.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "cuda/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cuda {

size_t GenericScratchBytes(const Problem& problem);
cudaError_t RunGeneric(const Problem& problem, const Operands& operands, void* scratch, cudaStream_t stream);

cudaError_t RunStream(const Problem& problem, const Operands& operands, const Plan& plan, const void* packed,
                      cudaStream_t stream);

}  // namespace qkvgemm::cuda
