#include "cuda/plan.h"

namespace qkvgemm::cuda {
namespace {

// mma.m16n8k16 has 8 token columns; two of them fit the registers beside the loads in flight.
constexpr int64_t kStreamRows = 16;
constexpr int kMaxColumnGroups = 6;

bool StreamServes(const Problem& p, const Device& device) {
  const bool half = p.t == DType::kFloat16 || p.t == DType::kBFloat16;
  return device.architecture >= 80 && half && p.tw == p.t && p.m >= 1 && p.m <= kStreamRows && p.k >= 8 &&
         p.k % 8 == 0 && p.n >= 1 && p.norm != NormType::kNone && p.num_splits <= kMaxInlineSplits;
}

// Groups of columns per block. Measured on an H200 (K = 4096): six where that still gives almost every multiprocessor
// a block, else two: blocks that share a multiprocessor hide each other's start and end.
int ColumnGroups(int64_t groups, int multiprocessors) {
  const int64_t blocks = (groups + kMaxColumnGroups - 1) / kMaxColumnGroups;
  if (10 * blocks >= 9 * multiprocessors) return kMaxColumnGroups;
  if (groups >= 2 * multiprocessors) return 2;
  return 1;
}

}  // namespace

Plan MakePlan(const Problem& problem, const Device& device, bool x_aligned, bool packable) {
  Plan plan;
  if (x_aligned && packable && StreamServes(problem, device)) {
    plan.family = Family::kStream;
    plan.column_groups = ColumnGroups((problem.n + 15) / 16, device.multiprocessors);
  }
  return plan;
}

std::string ToString(const Plan& plan) {
  if (plan.family == Family::kGeneric) return "generic";
  return "stream, " + std::to_string(16 * plan.column_groups) + " columns a block";
}

}  // namespace qkvgemm::cuda
