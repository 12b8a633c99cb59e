// The kernels for Isa::kAvx512Bf16.
#if defined(__x86_64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_avx512_bf16.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kAvx512Bf16;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& Avx512Bf16Kernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __x86_64__
