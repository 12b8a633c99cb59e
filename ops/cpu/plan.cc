#include "ops/cpu/plan.h"

#include <algorithm>

namespace qkvgemm::cpu {
namespace {

// Work below which another task costs more than it brings: about 20 microseconds of multiply-adds of one
// core.
constexpr int64_t kMinTaskMacs = 1 << 18;
// Elements below which the norm is not worth waking threads for (a few microseconds of one core).
constexpr int64_t kSerialNormElements = 1 << 15;
constexpr Choice kChoices[] = {{},
                               {.tasks_per_thread = 1},
                               {.tasks_per_thread = 2},
                               {.tasks_per_thread = 8},
                               {.row_blocks = 2},
                               {.row_blocks = 4},
                               {.norm = Choice::Norm::kSerial},
                               {.norm = Choice::Norm::kParallel}};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

Plan MakePlan(const Problem& problem, Isa isa, int threads, const Choice& choice) {
  Plan plan{};
  plan.tile = TileOf(isa);
  plan.panels = CeilDiv(problem.n, plan.tile.nr);
  // As few passes as the scratch allows, or a multiple, but none for less than two register tiles.
  const int64_t fewest = std::max<int64_t>(1, CeilDiv(problem.m, kMaxRowBlock));
  const int64_t most = std::max(fewest, problem.m / (2 * plan.tile.mr));
  plan.row_blocks = std::min(fewest * choice.row_blocks, most);
  plan.block_rows = CeilDiv(problem.m, plan.row_blocks);
  plan.widen = plan.block_rows > plan.tile.mr;
  plan.parallel_norm =
      threads > 1 && plan.block_rows > 1 &&
      (choice.norm == Choice::Norm::kBySize ? plan.block_rows * problem.k > kSerialNormElements
                                            : choice.norm == Choice::Norm::kParallel);
  const int64_t macs = plan.block_rows * std::max<int64_t>(problem.k, 1) * problem.n;
  plan.gemm_tasks = std::min({std::max<int64_t>(1, macs / kMinTaskMacs), std::max<int64_t>(1, plan.panels),
                              threads == 1 ? 1 : int64_t{choice.tasks_per_thread} * threads});
  return plan;
}

std::vector<Choice> Choices(const Problem& problem, Isa isa, int threads) {
  std::vector<Choice> choices;
  std::vector<Plan> plans;
  for (const Choice& choice : kChoices) {
    const Plan plan = MakePlan(problem, isa, threads, choice);
    if (std::ranges::find(plans, plan) != plans.end()) continue;
    choices.push_back(choice);
    plans.push_back(plan);
  }
  return choices;
}

std::string ToString(const Choice& choice) {
  static constexpr const char* kNorms[] = {"by size", "serial", "parallel"};
  return "tasks " + std::to_string(choice.tasks_per_thread) + " a thread, row blocks x" +
         std::to_string(choice.row_blocks) + ", norm " + kNorms[static_cast<int>(choice.norm)];
}

std::optional<Choice> ParseChoice(std::string_view text) {
  for (const Choice& choice : kChoices)
    if (ToString(choice) == text) return choice;
  return std::nullopt;
}

std::string ToString(const Plan& plan) {
  return "tile " + std::to_string(plan.tile.mr) + "x" + std::to_string(plan.tile.nr) + ", panels " +
         std::to_string(plan.panels) + ", row blocks " + std::to_string(plan.row_blocks) + " of " +
         std::to_string(plan.block_rows) + ", tasks " + std::to_string(plan.gemm_tasks) +
         (plan.parallel_norm ? ", parallel norm" : ", serial norm") +
         (plan.widen ? ", widened W" : ", streamed W");
}

}  // namespace qkvgemm::cpu
