// How a problem is computed on a CUDA device: a pure function of the problem and the device, so that it can be printed
// and tested where there is no GPU.
#pragma once

#include <cstdint>
#include <string>

#include "ops/problem.h"

namespace qkvgemm::cuda {

struct Device {
  int architecture = 0;     // 10 * major + minor of the compute capability
  int multiprocessors = 0;
};

enum class Family : uint8_t {
  kGeneric,  // any problem: normalised rows in float32, then a tiled product without matrix instructions
  kStream,   // few rows: one pass over packed W at the speed of memory, on mma.sync
};

// At most so many outputs; more go to the generic family, one launch each.
constexpr int kMaxInlineSplits = 8;

struct Plan {
  Family family = Family::kGeneric;
  int column_groups = 1;  // kStream: groups of 16 columns that a block computes
};

// `x_aligned`: the input is 16-byte aligned. `packable`: the operands that Pack wants are constant, and no `norm` output
// is asked for.
Plan MakePlan(const Problem& problem, const Device& device, bool x_aligned, bool packable);
constexpr bool NeedsPacked(Family family) { return family == Family::kStream; }
std::string ToString(const Plan& plan);

}  // namespace qkvgemm::cuda
