// The kernels for Isa::kNeon.
#if defined(__aarch64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_neon.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kNeon;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& NeonKernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __aarch64__
