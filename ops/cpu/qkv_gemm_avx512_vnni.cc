// The kernels for Isa::kAvx512Vnni.
#if defined(__x86_64__)
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_avx512_vnni.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kAvx512Vnni;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& Avx512VnniKernels() { return kKernels; }
}  // namespace qkvgemm::cpu
#endif  // __x86_64__
