// How a problem is computed on a CUDA device: pure functions of the problem and the device, so that a plan
// can be printed and tested where there is no GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/problem.h"

namespace qkvgemm::cuda {

struct Device {
  int architecture = 0;  // 10 * major + minor of the compute capability
  int multiprocessors = 0;
  bool tf32 = true;  // float32 may be rounded to TensorFloat32 for the matrix units
};

// The form in which a node's weights are kept. It depends on the node alone, not on the number of rows of a
// call.
enum class Packing : uint8_t {
  kNone,  // as they came
  kHalf,  // T, with gamma and a power of two per column folded in
  kInt8,  // int8 in the order in which matrix instructions take it from registers, to be widened to T there
          // and multiplied by gamma
  kInt8Activations,  // int8 in the order in which matrix instructions take it from shared memory
  kTf32  // float32 rounded to TensorFloat32 (8 bits of exponent, 10 of mantissa), or int8 as such integers
};

enum class Family : uint8_t {
  kGeneric,  // any problem: rows in float32, then a tiled product without matrix instructions
  kStream,   // few rows: one pass over W at the speed of memory, on mma.sync (sm_75 and later)
  kTile,     // any number of rows on mma.sync (sm_75 and later)
  kHopper,   // any number of rows on TMA and wgmma (sm_90)
};

// What the product reads.
enum class Rows : uint8_t {
  kInput,       // the input itself, beside each row's mean and 1/deviation
  kPadded,      // a copy of it with rows of a multiple of 8 elements, for inputs that are not 16-byte aligned
  kNormalised,  // (input - mean) / deviation in T, padded likewise; of float32, norm(input), rounded to
                // TensorFloat32
  kQuantised,   // norm(input) in int8, padded to a multiple of 16, with one scale a row
  kFloat,       // norm(input) in float32 (generic family)
};

struct Plan {
  Family family = Family::kGeneric;
  Rows rows = Rows::kFloat;
  int tile_rows = 0;     // rows of the input that a block computes at a time; 0: the family has no choice
  int tile_columns = 0;  // columns of W likewise
  int cluster_columns = 1, cluster_rows = 1;  // tiles of a cluster of blocks
  int k_parts = 1;                            // blocks, a cluster, that share out K of each tile
  bool shares = false;  // blocks of the product share the rows' statistics out; none before takes them

  friend bool operator==(const Plan&, const Plan&) = default;
};

// Outputs that the fast families write themselves; a node with more goes to the generic family.
constexpr int kMaxSplits = 8;

Packing ChoosePacking(const Problem& problem, const Device& device);

// The plan for problem.m rows that is estimated to be fastest; nothing is timed. `aligned`: the input's
// address is a multiple of 16.
Plan MakePlan(const Problem& problem, const Device& device, Packing packing, bool aligned);

// All plans that serve the problem, MakePlan's own first: for tests and benchmarks.
std::vector<Plan> Candidates(const Problem& problem, const Device& device, Packing packing, bool aligned);

// The candidates that may be taken in place of MakePlan's, which comes first, where they are found to be
// faster, since they promise results as accurate; in the order of Candidates.
std::vector<Plan> Alternatives(const Problem& problem, const Device& device, Packing packing, bool aligned);

// Whether a plan, wherever it comes from, can compute the problem.
bool Serves(const Plan& plan, const Problem& problem, const Device& device, Packing packing, bool aligned);

// Whether the blocks of the product take the statistics of the rows that they read, each all or, in a
// cluster, some of them.
bool ComputesStatistics(const Plan& plan, Packing packing);

std::string ToString(const Plan& plan);

}  // namespace qkvgemm::cuda
