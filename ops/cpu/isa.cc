// Which instruction sets this build has, this machine supports, and the user asks for.
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "ops/cpu/qkv_gemm_cpu.h"

namespace qkvgemm::cpu {
namespace {

#if defined(__x86_64__)
// Clang before 19 has no __builtin_cpu_supports("f16c"). The registers are AVX's, which is asked for beside
// it.
bool HasF16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// A bit of cpuid's leaf 7, for extensions whose names the builtins of older compilers do not know. Their
// registers are those of AVX2 or AVX-512, which is asked for beside them.
enum Register { kEax, kEbx, kEcx, kEdx };
bool Leaf7(unsigned subleaf, Register of, int bit) {
  unsigned registers[4] = {};
  return __get_cpuid_count(7, subleaf, &registers[kEax], &registers[kEbx], &registers[kEcx],
                           &registers[kEdx]) != 0 &&
         (registers[of] >> bit & 1) != 0;
}

// Linux keeps the state of matrix registers (8 KB a thread) for processes only that ask for it; threads that
// are there already have it then as well. Refused: by a kernel that knows nothing of it, or where a thread's
// signal stack is too small for that state.
bool MatrixStatePermitted() {
#if defined(__linux__)
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr unsigned long kTileData = 18;      // XFEATURE_XTILEDATA
  static const bool permitted = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  return permitted;
#else
  return false;
#endif
}
#elif defined(__aarch64__) && defined(__linux__)
// HWCAP2_I8MM and HWCAP2_BF16, which headers of older kernels do not name.
constexpr unsigned long kHasI8mm = 1ul << 13;
constexpr unsigned long kHasBf16 = 1ul << 14;
#endif

}  // namespace

const char* IsaName(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvxVnni:
      return "avx_vnni";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonDot:
      return "neon_dot";
    case Isa::kNeonI8mm:
      return "neon_i8mm";
    case Isa::kNeonBf16:
      return "neon_bf16";
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
    case Isa::kAvxVnni:
      return IsaSupported(Isa::kAvx2) && Leaf7(1, kEax, 4);
    case Isa::kAvx512Vnni:
      return IsaSupported(Isa::kAvx512) && Leaf7(0, kEcx, 11);
    case Isa::kAvx512Bf16:
      return IsaSupported(Isa::kAvx512Vnni) && Leaf7(1, kEax, 5);
    case Isa::kAmx:
      return IsaSupported(Isa::kAvx512Bf16) && Leaf7(0, kEdx, 22) && Leaf7(0, kEdx, 24) &&
             Leaf7(0, kEdx, 25) && MatrixStatePermitted();
    default:
      return false;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return true;
    case Isa::kNeonDot:
#if defined(__linux__)
      return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
    case Isa::kNeonI8mm:
      return IsaSupported(Isa::kNeonDot) && (getauxval(AT_HWCAP2) & kHasI8mm) != 0;
    case Isa::kNeonBf16:
      return IsaSupported(Isa::kNeonI8mm) && (getauxval(AT_HWCAP2) & kHasBf16) != 0;
#endif
    default:
      return false;
#else
    default:
      return false;
#endif
  }
  return false;
}

bool SelectIsa(const char* forced, Isa* isa, std::string* error) {
  *isa = Isa::kScalar;
  std::string known, supported;
  for (Isa candidate : kAllIsas) {
    known += known.empty() ? "" : ", ";
    known += IsaName(candidate);
    if (!IsaSupported(candidate)) continue;
    *isa = candidate;
    supported += supported.empty() ? "" : ", ";
    supported += IsaName(candidate);
  }
  if (forced == nullptr || *forced == '\0') return true;
  for (Isa candidate : kAllIsas) {
    if (std::strcmp(forced, IsaName(candidate)) != 0) continue;
    if (IsaSupported(candidate)) {
      *isa = candidate;
      return true;
    }
    *error = std::string("QKVGEMM_ISA is '") + forced + "', which this processor lacks; it has " + supported +
             ". Unset QKVGEMM_ISA to use the best.";
    return false;
  }
  *error = std::string("QKVGEMM_ISA is '") + forced + "', expected one of " + known +
           " (this processor has " + supported + "). Unset QKVGEMM_ISA to use the best.";
  return false;
}

}  // namespace qkvgemm::cpu
