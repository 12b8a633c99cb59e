// How long plans are estimated to take, for cuda/plan.cc to order them.
#pragma once

#include "cuda/plan.h"

namespace qkvgemm::cuda {

// Comparable within a family, and between kHopper and kStream for weights that are widened.
double Cost(const Problem& problem, const Plan& plan, Packing packing, int multiprocessors);

// Nine to 16 rows of int8, which kHopper or kStream serves best.
bool QuantisesFew(const Problem& problem, Packing packing);

// Whether shared statistics are there by the ends of the tiles that need them: three warps of each block take
// a few rows in 4500 cycles, longer ones in more; the first tiles lie in eight rows of tiles. Where they are
// not, a kernel before the product is faster; so it is where W takes longest, which is on its way meanwhile.
bool SharesInTime(const Problem& problem, const Plan& plan, Packing packing, int multiprocessors);

}  // namespace qkvgemm::cuda
