// The kernels, written once over `Vec`. Each translation unit includes one simd_*.h, then this file, and so
// compiles them for its own instruction set; everything is in an unnamed namespace, so that no unit borrows
// another's code.
#pragma once

#include "ops/cpu/kernels.h"
#include "ops/cpu/multiply-inl.h"
#include "ops/cpu/norm-inl.h"
#include "ops/cpu/peak-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr Kernels kKernels = {ToFloat,  FromFloat,       StoreRows, Normalize, RoundRow,
                              SplitRow, MultiplyVectors, Combine,   Spin};

}  // namespace
}  // namespace qkvgemm::cpu
