// wgmma (PTX ISA, "Asynchronous Warpgroup Level Matrix Multiply-Accumulate"): 64 rows of A by N columns of B,
// both K-major in shared memory with the 128-byte swizzle, or A from registers; 32 bytes along K at a time.
// For sm_90a only.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace qkvgemm::cuda {

// Shared-memory matrix descriptor: rows of 128 bytes, groups of eight rows 1024 bytes apart, 128-byte
// swizzle.
__device__ __forceinline__ uint64_t WgmmaDescriptor(uint32_t address) {
  return (uint64_t{1} << 62) | (uint64_t{1024 / 16} << 32) | (uint64_t{1} << 16) | ((address & 0x3ffff) >> 4);
}
__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// D(N)  the accumulators as operands; P(N) their names in the template.
// clang-format off
#define QKV_P0 "%0, %1, %2, %3, %4, %5, %6, %7"
#define QKV_P8 "%8, %9, %10, %11, %12, %13, %14, %15"
#define QKV_P16 "%16, %17, %18, %19, %20, %21, %22, %23"
#define QKV_P24 "%24, %25, %26, %27, %28, %29, %30, %31"
#define QKV_P32 "%32, %33, %34, %35, %36, %37, %38, %39"
#define QKV_P40 "%40, %41, %42, %43, %44, %45, %46, %47"
#define QKV_P48 "%48, %49, %50, %51, %52, %53, %54, %55"
#define QKV_P56 "%56, %57, %58, %59, %60, %61, %62, %63"
#define QKV_P64 "%64, %65, %66, %67, %68, %69, %70, %71"
#define QKV_P72 "%72, %73, %74, %75, %76, %77, %78, %79"
#define QKV_P80 "%80, %81, %82, %83, %84, %85, %86, %87"
#define QKV_P88 "%88, %89, %90, %91, %92, %93, %94, %95"
#define QKV_P96 "%96, %97, %98, %99, %100, %101, %102, %103"
#define QKV_P104 "%104, %105, %106, %107, %108, %109, %110, %111"
#define QKV_P112 "%112, %113, %114, %115, %116, %117, %118, %119"
#define QKV_P120 "%120, %121, %122, %123, %124, %125, %126, %127"
#define QKV_D8(c, i) c(d[i]), c(d[i + 1]), c(d[i + 2]), c(d[i + 3]), c(d[i + 4]), c(d[i + 5]), c(d[i + 6]), c(d[i + 7])
#define QKV_D16(c, i) QKV_D8(c, i), QKV_D8(c, i + 8)
#define QKV_D32(c, i) QKV_D16(c, i), QKV_D16(c, i + 16)
#define QKV_D48(c, i) QKV_D32(c, i), QKV_D16(c, i + 32)
#define QKV_D64(c, i) QKV_D32(c, i), QKV_D32(c, i + 32)
#define QKV_D96(c, i) QKV_D64(c, i), QKV_D32(c, i + 64)
#define QKV_D128(c, i) QKV_D64(c, i), QKV_D64(c, i + 64)
#define QKV_NAMES8 QKV_P0
#define QKV_NAMES16 QKV_P0 ", " QKV_P8
#define QKV_NAMES32 QKV_P0 ", " QKV_P8 ", " QKV_P16 ", " QKV_P24
#define QKV_NAMES48 QKV_NAMES32 ", " QKV_P32 ", " QKV_P40
#define QKV_NAMES64 QKV_P0 ", " QKV_P8 ", " QKV_P16 ", " QKV_P24 ", " QKV_P32 ", " QKV_P40 ", " QKV_P48 ", " QKV_P56
#define QKV_NAMES96 QKV_P0 ", " QKV_P8 ", " QKV_P16 ", " QKV_P24 ", " QKV_P32 ", " QKV_P40 ", " QKV_P48 ", " QKV_P56 ", " QKV_P64 ", " QKV_P72 ", " QKV_P80 ", " QKV_P88
#define QKV_NAMES128 QKV_P0 ", " QKV_P8 ", " QKV_P16 ", " QKV_P24 ", " QKV_P32 ", " QKV_P40 ", " QKV_P48 ", " QKV_P56 ", " QKV_P64 ", " QKV_P72 ", " QKV_P80 ", " QKV_P88 ", " QKV_P96 ", " QKV_P104 ", " QKV_P112 ", " QKV_P120
#define QKV_FLOAT(x) "+f"(x)
#define QKV_INT(x) "+r"(x)

template <typename Element, int kN> struct Wgmma;  // Ss: A and B by descriptor; Rs: A in registers

#define QKV_WGMMA_SS(acc, constraint, n, regs, shape, suffix, da, db, dp)                                     \
  static __device__ __forceinline__ void Ss(acc (&d)[regs], uint64_t a, uint64_t b, int add) {                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #dp ", 0;\n"                                            \
                 "wgmma.mma_async.sync.aligned." shape " {" QKV_NAMES##regs "}, %" #da ", %" #db ", p" suffix ";\n}\n" \
                 : QKV_D##regs(constraint, 0) : "l"(a), "l"(b), "r"(add));                                    \
  }
#define QKV_WGMMA_RS(acc, constraint, n, regs, shape, suffix, r0, r1, r2, r3, db, dp)                         \
  static __device__ __forceinline__ void Rs(acc (&d)[regs], const uint32_t (&a)[4], uint64_t b, int add) {    \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #dp ", 0;\n"                                            \
                 "wgmma.mma_async.sync.aligned." shape " {" QKV_NAMES##regs "}, {%" #r0 ", %" #r1 ", %" #r2 ", %" #r3 "}, %" #db ", p" suffix ";\n}\n" \
                 : QKV_D##regs(constraint, 0) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add)); \
  }
#define QKV_WGMMA(n, regs, o0, o1, o2, o3, o4, o5)                                                             \
  template <> struct Wgmma<__half, n> {                                                                       \
    using Accumulator = float;                                                                                \
    QKV_WGMMA_SS(float, QKV_FLOAT, n, regs, "m64n" #n "k16.f32.f16.f16", ", 1, 1, 0, 0", o0, o1, o2)           \
    QKV_WGMMA_RS(float, QKV_FLOAT, n, regs, "m64n" #n "k16.f32.f16.f16", ", 1, 1, 0", o0, o1, o2, o3, o4, o5)  \
  };                                                                                                          \
  template <> struct Wgmma<__nv_bfloat16, n> {                                                                \
    using Accumulator = float;                                                                                \
    QKV_WGMMA_SS(float, QKV_FLOAT, n, regs, "m64n" #n "k16.f32.bf16.bf16", ", 1, 1, 0, 0", o0, o1, o2)         \
    QKV_WGMMA_RS(float, QKV_FLOAT, n, regs, "m64n" #n "k16.f32.bf16.bf16", ", 1, 1, 0", o0, o1, o2, o3, o4, o5) \
  };                                                                                                          \
  template <> struct Wgmma<float, n> {                                                                        \
    using Accumulator = float;                                                                                \
    QKV_WGMMA_SS(float, QKV_FLOAT, n, regs, "m64n" #n "k8.f32.tf32.tf32", ", 1, 1", o0, o1, o2)                \
  };                                                                                                          \
  template <> struct Wgmma<int8_t, n> {                                                                       \
    using Accumulator = int32_t;                                                                              \
    QKV_WGMMA_SS(int32_t, QKV_INT, n, regs, "m64n" #n "k32.s32.s8.s8", "", o0, o1, o2)                         \
  };

QKV_WGMMA(16, 8, 8, 9, 10, 11, 12, 13)
QKV_WGMMA(32, 16, 16, 17, 18, 19, 20, 21)
QKV_WGMMA(64, 32, 32, 33, 34, 35, 36, 37)
QKV_WGMMA(96, 48, 48, 49, 50, 51, 52, 53)
QKV_WGMMA(128, 64, 64, 65, 66, 67, 68, 69)
QKV_WGMMA(192, 96, 96, 97, 98, 99, 100, 101)
QKV_WGMMA(256, 128, 128, 129, 130, 131, 132, 133)

#undef QKV_WGMMA
#undef QKV_WGMMA_SS
#undef QKV_WGMMA_RS
// clang-format on

}  // namespace qkvgemm::cuda
