// The kernels for Isa::kNeonI8mm.
#if defined(__aarch64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_neon_i8mm.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kNeonI8mm;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/matrix_neon-inl.h"
#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr Kernels kMatrixKernels = [] {
  Kernels kernels = kKernels;
  kernels.multiply = MultiplyMatrices;
  kernels.spin = SpinMatrices;
  return kernels;
}();

}  // namespace
const Kernels& NeonI8mmKernels() { return kMatrixKernels; }
}  // namespace qkvgemm::cpu
#endif  // __aarch64__
