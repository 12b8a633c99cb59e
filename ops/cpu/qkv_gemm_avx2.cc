// The kernels for Isa::kAvx2.
#if defined(__x86_64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_avx2.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kAvx2;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& Avx2Kernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __x86_64__
