#include "ops/cpu/plan.h"

#include <algorithm>
#include <cmath>

namespace qkvgemm::cpu {
namespace {

// What one core is taken to do in a nanosecond: with floats, hence DepthOf as many products of an operand
// that has more of them in a lane, and with bytes of W, which come from memory or a cache that cores share.
constexpr double FloatProducts(Isa isa, bool on_matrix_registers) {
  if (on_matrix_registers) return 300;  // of what they read from the second cache level
  return isa == Isa::kScalar ? 2 : 2.0 * TileOf(isa).nr;
}
constexpr double kBytes = 16;
// Nanoseconds that a task should take, and what each costs for each thread that asks for the next one (16
// Sapphire Rapids cores: 5 us for 72 tasks).
constexpr double kShortTask = 3000;
constexpr double kTaskPerThread = 5;
// What it costs to wake other threads and to wait for them.
constexpr double kFork = 3000;
constexpr int64_t kMostRowParts = 4;
constexpr int64_t kDepthParts[] = {1, 2, 3, 4, 6, 8};
// A spread is left for one that is estimated to be faster by more than chance.
constexpr double kWorthwhile = 15.0 / 16;
// Elements below which the norm is not worth waking threads for (a few microseconds of one core), and where
// they are rounded to integers besides.
constexpr int64_t kSerialNormElements = 1 << 15;
constexpr int64_t kSerialInt8Elements = 1 << 13;
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
                               {.row_parts = 2},
                               {.depth_parts = 2},
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

// K is cut where nothing is that lies together, nor a block of scales, nor an int32 sum's share.
int64_t DepthUnit(const Problem& problem, const WeightFormat& format) {
  constexpr int64_t kTogether = kMatrixRun * DepthOf(Operand::kInt8);
  if (problem.scale_layout == ScaleLayout::kBlocks) return problem.scale_block;
  return format.group > 1 && format.k > kMaxInt8Depth ? kMaxInt8Depth : kTogether;
}

// One pass over W, to be spread over threads.
struct Pass {
  int64_t panels, tiles, depth_units;
  double products, bytes;  // nanoseconds of one core for a panel: multiplied with all rows, and read once
};

double Nanoseconds(const Pass& pass, const Spread& spread, int64_t panels, int64_t tiles) {
  const double share = static_cast<double>(tiles) / static_cast<double>(pass.tiles);
  return static_cast<double>(panels) * std::max(pass.products * share, pass.bytes) /
         static_cast<double>(spread.depth_parts);
}

// When threads that take a task each until none is left are done with a pass. The last task begins when no
// thread is idle, hence after an even share at most; and no thread takes more than its turns.
double Estimate(const Pass& pass, const Spread& spread, int threads) {
  const auto tasks = static_cast<double>(spread.Tasks());
  const double largest = Nanoseconds(pass, spread, CeilDiv(pass.panels, spread.column_parts),
                                     CeilDiv(pass.tiles, spread.row_parts));
  const double even = std::max(Nanoseconds(pass, spread, pass.panels, pass.tiles),
                               pass.bytes * static_cast<double>(pass.panels * spread.row_parts)) *
                      static_cast<double>(spread.depth_parts) / threads;
  return std::min(std::ceil(tasks / threads) * largest, even + largest) + tasks * kTaskPerThread * threads +
         (tasks > 1 ? kFork : 0);
}

// Columns are cut first, which costs nothing; then rows, each part of which reads W anew, or, of a single row
// tile, K.
Spread SpreadOf(const Pass& pass, int threads, const Choice& choice) {
  Spread best;
  if (threads == 1) return best;
  const double all = Nanoseconds(pass, best, pass.panels, pass.tiles);
  const auto most = static_cast<int64_t>(std::max(1.0, all / kShortTask));
  best.column_parts = std::min({most, pass.panels, int64_t{choice.tasks_per_thread} * threads});
  const bool deep = pass.tiles == 1;
  if (choice.row_parts != 0) best.row_parts = std::min<int64_t>(choice.row_parts, pass.tiles);
  if (choice.depth_parts != 0 && deep)
    best.depth_parts = std::clamp<int64_t>(choice.depth_parts, 1, std::max<int64_t>(1, pass.depth_units));
  if (choice.row_parts != 0 || choice.depth_parts != 0) return best;
  double least = Estimate(pass, best, threads) * kWorthwhile;
  const auto consider = [&](const Spread& spread) {
    const double time = Estimate(pass, spread, threads);
    if (time < least) least = time, best = spread;
  };
  for (const int64_t columns : {best.column_parts, pass.panels}) {
    for (int64_t rows = 1; rows <= std::min(pass.tiles, kMostRowParts); ++rows) consider({columns, rows, 1});
    for (const int64_t depth : kDepthParts)
      if (deep && depth <= pass.depth_units) consider({columns, 1, depth});
  }
  return best;
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
  const int64_t most_serial = plan.operand == Operand::kInt8 ? kSerialInt8Elements : kSerialNormElements;
  plan.parallel_norm = threads > 1 && plan.block_rows > 1 &&
                       (choice.norm == Choice::Norm::kBySize ? plan.block_rows * problem.k > most_serial
                                                             : choice.norm == Choice::Norm::kParallel);
  plan.depth_unit = DepthUnit(problem, format);
  const auto panel = static_cast<double>(format.k * plan.tile.nr);
  const Pass pass{
      .panels = std::max<int64_t>(1, plan.panels),
      .tiles = RowTiles(plan.block_rows, TileRows(plan)).count,
      .depth_units = CeilDiv(format.k, plan.depth_unit),
      .products = panel * static_cast<double>(plan.block_rows * plan.digits) /
                  (FloatProducts(isa, amx) * DepthOf(plan.operand)),
      .bytes = panel * static_cast<double>(SizeOf(problem.tw)) / kBytes,
  };
  plan.spread = SpreadOf(pass, threads, choice);
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
         std::to_string(choice.row_blocks) + ", norm " + kNorms[static_cast<int>(choice.norm)] +
         (choice.row_parts ? ", ranges of rows " + std::to_string(choice.row_parts) : "") +
         (choice.depth_parts ? ", ranges of K " + std::to_string(choice.depth_parts) : "");
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
         std::to_string(plan.block_rows) + ", tasks " + std::to_string(plan.spread.Tasks()) +
         (plan.spread.row_parts > 1 ? " of " + std::to_string(plan.spread.row_parts) + " ranges of rows"
                                    : "") +
         (plan.spread.depth_parts > 1 ? " of " + std::to_string(plan.spread.depth_parts) + " ranges of K"
                                      : "") +
         (plan.parallel_norm ? ", parallel norm" : ", serial norm") +
         (plan.widen ? ", widened W" : ", W as packed") + ", as " +
         kOperands[static_cast<int>(plan.operand)] +
         (plan.digits > 1 ? " in " + std::to_string(plan.digits) + " digits" : "") +
         (plan.run > 1 ? " in matrices" : "");
}

}  // namespace qkvgemm::cpu
