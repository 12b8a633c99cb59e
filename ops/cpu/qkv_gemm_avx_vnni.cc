// The kernels for Isa::kAvxVnni.
#if defined(__x86_64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_avx_vnni.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kAvxVnni;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& AvxVnniKernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __x86_64__
