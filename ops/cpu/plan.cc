#include "ops/cpu/plan.h"

#include <algorithm>

namespace qkvgemm::cpu {
namespace {

// Work below which another task costs more than it brings: about 20 microseconds of multiply-adds of one
// core.
constexpr int64_t kMinTaskMacs = 1 << 18;
// Elements below which the norm is not worth waking threads for (a few microseconds of one core).
constexpr int64_t kSerialNormElements = 1 << 15;
// Tasks per thread: a thread that the system preempts is relieved by the others.
constexpr int64_t kTasksPerThread = 4;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Plan MakePlan(const Problem& problem, Isa isa, int threads) {
  Plan plan{};
  plan.tile = TileOf(isa);
  plan.panels = CeilDiv(problem.n, plan.tile.nr);
  plan.row_blocks = std::max<int64_t>(1, CeilDiv(problem.m, kMaxRowBlock));
  plan.block_rows = CeilDiv(problem.m, plan.row_blocks);
  plan.widen = plan.block_rows > plan.tile.mr;
  plan.parallel_norm =
      threads > 1 && plan.block_rows > 1 && plan.block_rows * problem.k > kSerialNormElements;
  const int64_t macs = plan.block_rows * std::max<int64_t>(problem.k, 1) * problem.n;
  plan.gemm_tasks = std::min({std::max<int64_t>(1, macs / kMinTaskMacs), std::max<int64_t>(1, plan.panels),
                              threads == 1 ? 1 : kTasksPerThread * threads});
  return plan;
}

std::string ToString(const Plan& plan) {
  return "tile " + std::to_string(plan.tile.mr) + "x" + std::to_string(plan.tile.nr) + ", panels " +
         std::to_string(plan.panels) + ", row blocks " + std::to_string(plan.row_blocks) + " of " +
         std::to_string(plan.block_rows) + ", tasks " + std::to_string(plan.gemm_tasks) +
         (plan.parallel_norm ? ", parallel norm" : ", serial norm") +
         (plan.widen ? ", widened W" : ", streamed W");
}

}  // namespace qkvgemm::cpu
