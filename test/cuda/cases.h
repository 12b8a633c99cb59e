// The problems that the CUDA kernels' test computes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "test/kernels/case.h"

namespace qkvgemm::support {

struct CudaCase {
  std::string group;
  Case c;                       // not yet filled
  bool input_aligned = true;    // to 256 bytes, else to the element alone
  bool outputs_aligned = true;  // likewise, and all other operands
  uint32_t unwanted = 0;        // bit i: the caller does not want y[i]
};

// The same seed gives the same cases. `quick`: a few small ones of each group, for tools that slow kernels
// down.
std::vector<CudaCase> CudaCases(unsigned seed, bool quick);

std::string Describe(const CudaCase& c);

}  // namespace qkvgemm::support
