// What goes into and out of shared memory without TMA, sm_75 and later.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace qkvgemm::cuda {

__device__ __forceinline__ uint32_t SharedAddress(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Four matrices of eight rows of 16 bytes; lane l gives the address of row l % 8 of matrix l / 8, and gets
// bytes 4 t .. 4 t + 3 of row g of each.
__device__ __forceinline__ void LoadMatrices(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ void LoadVector(uint32_t (&r)[4], uint32_t address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(address)
               : "memory");
}
__device__ __forceinline__ void StoreWord(uint32_t address, uint32_t value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}

// A thread's copies of 16 bytes into shared memory, kCount of them at a time. Asynchronous on sm_80 and
// later; before, they are in registers between Start and Finish.
template <int kCount>
class Copies {
 public:
  // Writes zeros where `there` is false.
  __device__ __forceinline__ void Start([[maybe_unused]] int i, uint32_t target, const void* source,
                                        bool there) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
    targets_[i] = target;
    values_[i] = there ? *static_cast<const uint4*>(source) : uint4{0, 0, 0, 0};
#else
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(there ? 16 : 0)
                 : "memory");
#endif
  }
  __device__ __forceinline__ void Finish() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(targets_[i]), "r"(values_[i].x),
                   "r"(values_[i].y), "r"(values_[i].z), "r"(values_[i].w)
                   : "memory");
#endif
  }

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
 private:
  uint32_t targets_[kCount];
  uint4 values_[kCount];
#endif
};
// Groups of the copies that were started.
__device__ __forceinline__ void CommitCopies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last kPending groups of this thread's copies are there.
template <int kPending>
__device__ __forceinline__ void WaitForCopies() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

}  // namespace qkvgemm::cuda
