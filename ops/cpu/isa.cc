// Which instruction sets this build has, this machine supports, and the user asks for.
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "ops/cpu/qkv_gemm_cpu.h"

namespace qkvgemm::cpu {
namespace {

constexpr Isa kAll[] = {Isa::kScalar, Isa::kAvx2, Isa::kAvx512};

#if defined(__x86_64__)
// Clang before 19 has no __builtin_cpu_supports("f16c"). The registers are AVX's, which is asked for beside
// it.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
  }
  return "unknown";
}

bool IsaSupported(Isa isa) {
  // The builtins ask cpuid and, for the register state, the operating system (xgetbv).
  switch (isa) {
    case Isa::kScalar:
      return true;
#if defined(__x86_64__)
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HasF16c();
    case Isa::kAvx512:
      return IsaSupported(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
#else
    default:
      return false;
#endif
  }
  return false;
}

bool SelectIsa(const char* forced, Isa* isa, std::string* error) {
  *isa = Isa::kScalar;
  std::string supported;
  for (Isa candidate : kAll) {
    if (!IsaSupported(candidate)) continue;
    *isa = candidate;
    supported += supported.empty() ? "" : ", ";
    supported += IsaName(candidate);
  }
  if (forced == nullptr || *forced == '\0') return true;
  for (Isa candidate : kAll) {
    if (std::strcmp(forced, IsaName(candidate)) != 0) continue;
    if (IsaSupported(candidate)) {
      *isa = candidate;
      return true;
    }
    *error = std::string("QKVGEMM_ISA is '") + forced + "', which this processor lacks; it has " + supported +
             ". Unset QKVGEMM_ISA to use the best.";
    return false;
  }
  *error = std::string("QKVGEMM_ISA is '") + forced +
           "', expected one of scalar, avx2, avx512 (this processor has " + supported +
           "). Unset QKVGEMM_ISA to use the best.";
  return false;
}

}  // namespace qkvgemm::cpu
