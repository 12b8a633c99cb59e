// The kernels for Isa::kAmx: those of AVX-512, with products on matrix registers where there are rows enough.
#if defined(__x86_64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_avx512_bf16.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kAmx;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/matrix_amx-inl.h"
#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr Kernels kMatrixKernels = [] {
  Kernels kernels = kKernels;
  kernels.multiply = MultiplyOnMatrices;
  kernels.spin = SpinOnMatrices;
  return kernels;
}();

}  // namespace
const Kernels& AmxKernels() { return kMatrixKernels; }
}  // namespace qkvgemm::cpu
#endif  // __x86_64__
