#include "ops/cpu/plan.h"

#include <algorithm>

namespace qkvgemm::cpu {
namespace {

// Work below which another task costs more than it brings: about 20 microseconds of multiply-adds of one
// core.
constexpr int64_t kMinTaskMacs = 1 << 18;
// Elements below which the norm is not worth waking threads for (a few microseconds of one core).
constexpr int64_t kSerialNormElements = 1 << 15;
// Rows up to which broadcasting them costs less than filling matrix registers. Dot products of bfloat16,
// which processors with AMX do at half the rate of int8's, lose at once (16 Sapphire Rapids cores, K = 4096,
// N = 12288: 846 us at M = 8, and 444 at M = 14 on matrix registers).
constexpr int64_t kMinMatrixRows = 8;
// Register tiles of rows for each of which weights are widened anew: more are cheaper with a copy in cache.
constexpr int kTilesThatWiden = 2;
constexpr Choice kChoices[] = {{},
                               {.tasks_per_thread = 1},
                               {.tasks_per_thread = 2},
                               {.tasks_per_thread = 8},
                               {.row_blocks = 2},
                               {.row_blocks = 4},
                               {.norm = Choice::Norm::kSerial},
                               {.norm = Choice::Norm::kParallel}};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Are there rows enough for AMX's registers, and do blocks of scales fill them?
bool FillsMatrices(const Problem& problem, Operand operand) {
  const int64_t least = operand == Operand::kBFloat16 ? kExactRows : kMinMatrixRows;
  return problem.m > least && (problem.scale_layout != ScaleLayout::kBlocks ||
                               problem.scale_block % (kMatrixRun * DepthOf(operand)) == 0);
}

Operand OperandOf(const Problem& problem, const WeightFormat& format) {
  if (format.group == 1) return Operand::kFloat;
  if (problem.tw == DType::kInt8) return Operand::kInt8;
  return problem.m > kExactRows ? Operand::kBFloat16 : Operand::kFloat;
}

int DigitsOf(const Problem& problem, Operand operand) {
  if (operand != Operand::kInt8 || problem.activation_quant) return 1;
  return problem.m <= kExactRows || problem.k > kMaxFewDigitsDepth ? kExactDigits : kFewDigits;
}

}  // namespace

WeightFormat FormatOf(const Problem& problem, Isa isa) {
  const Dot dot = DotOf(isa);
  const bool blocks = problem.scale_layout == ScaleLayout::kBlocks;
  Operand operand = Operand::kFloat;
  if (problem.tw == DType::kBFloat16 && dot.bfloat16) operand = Operand::kBFloat16;
  // What lies together has one scale, and a scale's int32 sums fit.
  const int64_t together = DepthOf(Operand::kInt8) * dot.column_run;
  const bool blocks_fit =
      !blocks || (problem.scale_block % together == 0 && problem.scale_block <= kMaxInt8Depth);
  if (problem.tw == DType::kInt8 && blocks_fit && dot.int8) operand = Operand::kInt8;
  if (operand == Operand::kFloat) return {1, problem.k, false};
  const int group = DepthOf(operand) * dot.column_run;
  const int64_t multiple = blocks ? group : DepthOf(operand) * dot.row_run;
  return {group, CeilDiv(problem.k, multiple) * multiple, operand == Operand::kInt8 && dot.unsigned_weights};
}

Plan MakePlan(const Problem& problem, Isa isa, int threads, const Choice& choice) {
  Plan plan{};
  plan.tile = TileOf(isa);
  plan.panels = CeilDiv(problem.n, plan.tile.nr);
  const WeightFormat format = FormatOf(problem, isa);
  plan.operand = OperandOf(problem, format);
  plan.digits = DigitsOf(problem, plan.operand);
  // For Arm's products of matrices, in vector registers, W is packed whatever the number of rows.
  const bool amx =
      isa == Isa::kAmx && plan.operand != Operand::kFloat && FillsMatrices(problem, plan.operand);
  plan.run = amx || (plan.operand != Operand::kFloat && DotOf(isa).column_run > 1) ? DotOf(isa).row_run : 1;
  if (amx) plan.tile.mr = kMatrixRows;
  // As few passes as the scratch allows, or a multiple, but none for less than two register tiles.
  const int64_t most_rows = amx ? std::clamp<int64_t>(kMatrixRowBytes * DepthOf(plan.operand) / 4 /
                                                          plan.digits / std::max<int64_t>(format.k, 1),
                                                      2 * TileRows(plan), kMaxRowBlock / plan.digits)
                                : kMaxRowBlock / plan.digits;
  const int64_t fewest = std::max<int64_t>(1, CeilDiv(problem.m, most_rows));
  const int64_t most = std::max(fewest, problem.m / (2 * TileRows(plan)));
  plan.row_blocks = std::min(fewest * choice.row_blocks, most);
  plan.block_rows = CeilDiv(problem.m, plan.row_blocks);
  plan.widen = plan.operand == Operand::kFloat && problem.tw != DType::kFloat &&
               plan.block_rows > kTilesThatWiden * plan.tile.mr;
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
  static constexpr const char* kOperands[] = {"float", "bfloat16", "int8"};
  return "tile " + std::to_string(plan.tile.mr) + "x" + std::to_string(plan.tile.nr) + ", panels " +
         std::to_string(plan.panels) + ", row blocks " + std::to_string(plan.row_blocks) + " of " +
         std::to_string(plan.block_rows) + ", tasks " + std::to_string(plan.gemm_tasks) +
         (plan.parallel_norm ? ", parallel norm" : ", serial norm") +
         (plan.widen ? ", widened W" : ", W as packed") + ", as " +
         kOperands[static_cast<int>(plan.operand)] +
         (plan.digits > 1 ? " in " + std::to_string(plan.digits) + " digits" : "") +
         (plan.run > 1 ? " in matrices" : "");
}

}  // namespace qkvgemm::cpu
