// The kernels for Isa::kNeonDot.
#if defined(__aarch64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_neon_dot.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kNeonDot;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& NeonDotKernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __aarch64__
