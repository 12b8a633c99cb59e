// The kernels for Isa::kScalar.
#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/cpu/simd_scalar.h"

namespace qkvgemm::cpu {
namespace {
constexpr Isa kThisIsa = Isa::kScalar;
}
}  // namespace qkvgemm::cpu

#include "ops/cpu/qkv_gemm-inl.h"

namespace qkvgemm::cpu {
const Kernels& ScalarKernels() { return kKernels; }
}  // namespace qkvgemm::cpu
