// Kernel launches with the attributes that this folder uses.
#pragma once

#include <cuda_runtime.h>

namespace qkvgemm::cuda {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;
  int cluster = 1;         // neighbouring blocks that start together and reach each other's shared memory
  bool dependent = false;  // may start before the kernel before it ends; it waits by griddepcontrol.wait
};

// Of the current device.
inline cudaError_t GetMultiprocessors(int* count) {
  int device = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  return cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
}

// Whether the current device knows programmatic dependent launch, and the code that runs there waits as it
// must: PTX of an older architecture, compiled by the driver for a newer device, does not (WaitForPrevious).
inline bool HasDependentLaunch() {
#ifdef QKVGEMM_NO_DEPENDENT_LAUNCH
  return false;
#else
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         major >= 9;
#endif
}

template <typename... Parameters, typename... Arguments>
cudaError_t Launch(void (*kernel)(Parameters...), const LaunchShape& shape, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attributes[2] = {};
  config.attrs = attributes;
  if (shape.dependent && HasDependentLaunch()) {
    auto& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    a.val.programmaticStreamSerializationAllowed = 1;
  }
  if (shape.cluster > 1) {
    auto& a = attributes[config.numAttrs++];
    a.id = cudaLaunchAttributeClusterDimension;
    a.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    a.val.clusterDim.y = a.val.clusterDim.z = 1;
  }
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

#ifdef __CUDA_ARCH__
// Programmatic dependent launch (PTX griddepcontrol, sm_90); elsewhere kernels of a stream run one after
// another.
__device__ __forceinline__ void WaitForPrevious() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void LetNextStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
#else
__device__ void WaitForPrevious();
__device__ void LetNextStart();
#endif

}  // namespace qkvgemm::cuda
