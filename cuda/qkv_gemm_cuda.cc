#include "cuda/qkv_gemm_cuda.h"

#include "cuda/families.h"

namespace qkvgemm::cuda {

cudaError_t GetDevice(int ordinal, Device* device) {
  int major = 0, minor = 0;
  if (const cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal)) return e;
  if (const cudaError_t e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal)) return e;
  device->architecture = 10 * major + minor;
  return cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, ordinal);
}

size_t ScratchBytes(const Problem& problem, const Plan& plan) {
  return plan.family == Family::kGeneric ? GenericScratchBytes(problem) : 0;
}

cudaError_t Run(const Problem& problem, const Operands& operands, const Plan& plan, const void* packed, void* scratch,
                cudaStream_t stream) {
  if (problem.m == 0) return cudaSuccess;
  if (plan.family == Family::kStream) return RunStream(problem, operands, plan, packed, stream);
  return RunGeneric(problem, operands, scratch, stream);
}

}  // namespace qkvgemm::cuda
