#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "cuda/layout.h"

namespace qkvgemm::cuda {
namespace {

// The matrix families index rows, columns and tiles with int, and their tensor maps with 32 bits.
constexpr int64_t kLongest = std::numeric_limits<int>::max() / 2;

int NonEmptySplits(const Problem& p) {
  int count = 0;
  for (int64_t s = 0; s < p.num_splits; ++s) count += p.splits[s] > 0;
  return count;
}

Rows RowsOf(const Problem& p, Packing packing, bool aligned) {
  if (packing == Packing::kInt8Activations) return Rows::kQuantised;
  // Matrix units cut floats off, so that they must have been rounded before.
  if (packing == Packing::kTf32) return Rows::kNormalised;
  // Products with rows as they come have the mean in their sums, which costs digits where it is much larger
  // than the deviation, the more the longer the sums: for 64 deviations 2.2 times the error of the unfused
  // form at K = 8192, 4.2 times at 16384 (H200, float16).
  constexpr int64_t kLongestRaw = 8192;
  if (p.norm == NormType::kLayerNorm && p.k > kLongestRaw) return Rows::kNormalised;
  return aligned && p.k % 8 == 0 ? Rows::kInput : Rows::kPadded;
}

// The tiles that the families' sources have: cuda/stream.cu, cuda/hopper_sm90.cu, cuda/tile.cu.
struct Tile {
  Family family;
  int columns, rows;
};
constexpr Tile kTiles[] = {
    {Family::kStream, 16, 1},    {Family::kStream, 32, 1},    {Family::kStream, 48, 1},
    {Family::kStream, 96, 1},    {Family::kStream, 16, 8},    {Family::kStream, 32, 8},
    {Family::kStream, 48, 8},    {Family::kStream, 96, 8},    {Family::kStream, 16, 16},
    {Family::kStream, 32, 16},   {Family::kStream, 48, 16},   {Family::kStream, 96, 16},
    {Family::kHopper, 64, 16},   {Family::kHopper, 80, 16},   {Family::kHopper, 96, 16},
    {Family::kHopper, 128, 16},  {Family::kHopper, 64, 32},   {Family::kHopper, 80, 32},
    {Family::kHopper, 96, 32},   {Family::kHopper, 128, 32},  {Family::kHopper, 64, 64},
    {Family::kHopper, 80, 64},   {Family::kHopper, 96, 64},   {Family::kHopper, 128, 64},
    {Family::kHopper, 64, 96},   {Family::kHopper, 128, 96},  {Family::kHopper, 128, 128},
    {Family::kHopper, 192, 128}, {Family::kHopper, 192, 192}, {Family::kHopper, 128, 256},
    {Family::kHopper, 192, 256}, {Family::kTile, 64, 32},     {Family::kTile, 64, 64},
    {Family::kTile, 128, 64},    {Family::kTile, 128, 128}};

// Parts of pieces keep their swizzle, and are whole 16 columns of a warp.
static_assert(std::ranges::all_of(kTiles, [](const Tile& tile) { return tile.columns % 16 == 0; }));

// Clusters of blocks: tiles along the columns and the rows.
struct Cluster {
  int columns, rows;
};
constexpr Cluster kClusters[] = {{1, 1}, {2, 2}, {4, 1}, {1, 2}};

Plan PlanOf(const Tile& tile, Rows rows, Cluster cluster = {1, 1}, bool shares = false) {
  Plan plan;
  plan.cluster_columns = cluster.columns, plan.cluster_rows = cluster.rows;
  plan.shares = shares;
  plan.family = tile.family;
  plan.rows = rows;
  plan.tile_columns = tile.columns;
  plan.tile_rows = tile.rows;
  return plan;
}

// Bytes of the elements that a product reads.
double ColumnBytes(Packing packing) {
  return packing == Packing::kTf32 ? 4 : packing == Packing::kHalf ? 2 : 1;
}
double RowBytes(Packing packing) {
  return packing == Packing::kTf32 ? 4 : packing == Packing::kInt8Activations ? 1 : 2;
}
// Products that matrix units form in a cycle of a multiprocessor, relative to those of halves.
double MatrixRate(Packing packing) { return 2 / RowBytes(packing); }

// Tiles of up to 96 columns whose few rows have a warpgroup for their statistics, and leave from registers.
// (So do those of 128 columns; what they gain does not show where W takes most of the time.)
bool FewHalves(const Plan& plan, Packing packing) {
  return packing == Packing::kHalf && plan.tile_columns < 128 && plan.tile_rows <= kMostMomentRows;
}

// Cycles that a tile's matrix instructions or its loads take (48 bytes each, as measured on an H200: that
// gives 65.5, 54.6 and 43.7 thousand for tiles of 128 x 256, 192 x 128 and 128 x 128 at K = 4096, where 66.3,
// 53.5 and 41.6 were counted). Half of widening int8 weights is hidden behind the products, and so are most
// statistics of one tile of rows; of halves they are, by a warpgroup of their own (H100: tiles of 64 x 16 to
// 192 x 128 within a tenth).
double TileCycles(const Problem& p, const Plan& plan, Packing packing) {
  const auto depth = static_cast<double>(RoundUp(p.k, PieceDepth(packing)));
  const double size = static_cast<double>(TileGroups(plan.tile_columns)) * kPieceColumns * plan.tile_rows;
  const double compute = depth * size / (2048.0 * MatrixRate(packing));
  const double load =
      depth * (ColumnBytes(packing) * plan.tile_columns + RowBytes(packing) * plan.tile_rows) / 48.0;
  const bool widened = packing == Packing::kInt8;
  double statistics = 0;
  if (ComputesStatistics(plan) && !FewHalves(plan, packing))
    statistics = depth * (widened && p.m <= plan.tile_rows ? 1.5 : plan.tile_rows / 8.0);
  return std::max(compute, load + statistics) + (widened ? compute / 2 : 0);
}

// The shortest K with which narrow tiles were timed: the shorter a call, the more the next one's early start
// on multiprocessors that it leaves idle is worth.
constexpr int64_t kLeastNarrowK = 4096;

// Whether a narrow tile is the least that holds all rows, and there are columns enough for one on each
// multiprocessor, but too many for tiles of 64: those of 128 would leave up to half of the device out (H100:
// K = 4096, N = 12288 and K = 8192, N = 10240, up to a tenth faster. Where tiles of 64 fit, narrow ones were
// slower).
bool NarrowFits(const Problem& p, const Plan& plan, int multiprocessors) {
  return IsNarrow(plan.tile_columns) && p.k >= kLeastNarrowK && p.m <= plan.tile_rows &&
         (p.m > plan.tile_rows / 2 || plan.tile_rows == 16) &&
         CeilDiv(p.n, plan.tile_columns) <= multiprocessors && CeilDiv(p.n, kPieceColumns) > multiprocessors;
}

// Nine to 16 rows of int8, which kHopper or kStream serves best.
bool QuantisesFew(const Problem& p, Packing packing) {
  return packing == Packing::kInt8Activations && p.m > 8 && p.m <= 16;
}

// A kernel before the product, if only to clear counters, delays it.
double Delay(const Problem& p, const Plan& plan, Packing packing) {
  const bool alone = plan.rows == Rows::kInput && (p.norm == NormType::kNone || ComputesStatistics(plan));
  return alone ? 0 : packing == Packing::kInt8 ? 700 : 2000;
}

struct Cycles {
  double multiply;  // all rounds of tiles
  double memory;    // as long as W takes from memory, and again in part for each further tile of rows
};
Cycles HopperCycles(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto row_tiles = static_cast<double>(CeilDiv(p.m, plan.tile_rows));
  const double tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns)) * row_tiles;
  const auto depth = static_cast<double>(RoundUp(p.k, PieceDepth(packing)));
  const double size = static_cast<double>(plan.tile_columns) * plan.tile_rows;
  const double write = FewHalves(plan, packing) ? 500 + 65 * plan.tile_rows
                                                : 500 + size * static_cast<double>(SizeOf(p.t)) / 26;
  const double rounds = std::ceil(tiles / multiprocessors);
  double memory =
      depth * static_cast<double>(p.n) * ColumnBytes(packing) / 2400.0 * (1 + 0.05 * (row_tiles - 1));
  // What a multiprocessor takes from memory alone, 18 bytes a cycle, decides against kStream.
  if (QuantisesFew(p, packing)) memory = std::max(memory, rounds * depth * plan.tile_columns / 18);
  return {rounds * (TileCycles(p, plan, packing) + write), memory};
}

// An estimate in cycles of a multiprocessor: the products or W, and a share of the lesser of the two, since
// neither hides the other completely.
double HopperCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto row_tiles = static_cast<double>(CeilDiv(p.m, plan.tile_rows));
  const auto [multiply, memory] = HopperCycles(p, plan, packing, multiprocessors);
  // Where halves are multiplied, the largest tile is the fastest of those that fill the device as well; those
  // of 96 and 192 rows take longer than their size tells.
  const bool largest = plan.tile_columns == 192 && plan.tile_rows == 256;
  double factor = largest && packing != Packing::kHalf ? 1.03 : 1.0;
  if (plan.tile_rows == 96) factor = 1.12;
  if (plan.tile_rows == 192) factor = 1.05;
  if (IsNarrow(plan.tile_columns)) factor = NarrowFits(p, plan, multiprocessors) ? 0.93 : 1.5;
  // Each tile of rows widens all weights again.
  if (packing == Packing::kInt8 && ComputesStatistics(plan)) factor *= 1 + 0.05 * (row_tiles - 1);
  if (packing == Packing::kHalf && plan.tile_rows <= kMostMomentRows) factor *= 1 + 0.12 * (row_tiles - 1);
  // Blocks start while those of the call before still run, if there are multiprocessors for both.
  double crowded = 0;
  if (FewHalves(plan, packing)) {
    const double tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns)) * row_tiles;
    crowded = 1800 * std::clamp((tiles - multiprocessors / 2.0) / (multiprocessors / 4.0), 0.0, 1.0);
  }
  // Clusters bring up to a tenth where many blocks read the same, W takes nearly all of the time, or tiles
  // are of 192 x 128; else their blocks wait for each other (H100).
  if (plan.cluster_columns * plan.cluster_rows > 1) {
    const bool gains = plan.cluster_columns > plan.cluster_rows ? row_tiles == 1
                       : plan.cluster_columns > 1               ? row_tiles >= 4
                                                  : memory > 0.7 * multiply || plan.tile_columns == 192;
    factor *= gains ? 0.96 : 1.02;
  }
  return Delay(p, plan, packing) + crowded +
         factor * (std::max(multiply, memory) + 0.25 * std::min(multiply, memory));
}

constexpr int kWholeDevice = 64;  // multiprocessors; the smallest of sm_90 that is sold has 78

// Whether blocks may form clusters: whole ones, with one tile for each block. Those of four must lie in one
// part of the device, where they leave some multiprocessors out: all of 128 blocks do not start at once.
bool MayCluster(const Problem& p, const Tile& tile, Packing packing, Cluster cluster, int multiprocessors) {
  const bool there = std::ranges::any_of(kClusters, [&](const Cluster& other) {
    return other.columns == cluster.columns && other.rows == cluster.rows;
  });
  if (!there) return false;
  const int size = cluster.columns * cluster.rows;
  if (size == 1) return true;
  // A part of a device (MIG, MPS) need not have so many multiprocessors together, and the launch would fail.
  if (multiprocessors < kWholeDevice) return false;
  const int64_t columns = CeilDiv(p.n, tile.columns), rows = CeilDiv(p.m, tile.rows);
  return tile.family == Family::kHopper && !IsNarrow(tile.columns) &&
         HasClusterTile(packing, TileGroups(tile.columns), tile.rows) && columns % cluster.columns == 0 &&
         rows % cluster.rows == 0 &&
         columns * rows <= (size == 4 ? multiprocessors * 3 / 4 : multiprocessors);
}

// Whether tiles of a family may leave the statistics to blocks that share them out.
bool MayShare(const Problem& p, const Tile& tile, Rows rows) {
  return tile.family == Family::kHopper && rows == Rows::kInput && tile.rows > kMostMomentRows &&
         p.norm != NormType::kNone;
}

// Whether shared statistics are there by the ends of the tiles that need them: three warps of each block take
// a few rows in 4500 cycles, longer ones in more; the first tiles lie in eight rows of tiles. Where they are
// not, a kernel before the product is faster; so it is where W takes longest, which is on its way meanwhile,
// but for narrow tiles (H100: 3 %).
bool SharesInTime(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  if (p.m <= plan.tile_rows && !IsNarrow(plan.tile_columns)) {
    const auto [multiply, memory] = HopperCycles(p, plan, packing, multiprocessors);
    if (memory > multiply) return false;
  }
  const int64_t tiles = CeilDiv(p.n, plan.tile_columns) * CeilDiv(p.m, plan.tile_rows);
  const int64_t warps = kSharingWarps * std::min<int64_t>(tiles, multiprocessors);
  const int64_t at_once = warps * SharedRows(p.k, p.m, warps);
  const auto cycles = [&](int64_t rows) {
    return static_cast<double>(CeilDiv(rows, at_once)) *
           std::max(4500.0, 3000 + static_cast<double>(p.k) / 2);
  };
  const double tile = TileCycles(p, plan, packing);
  return p.m <= at_once || (cycles(std::min<int64_t>(p.m, 8 * plan.tile_rows)) <= tile &&
                            cycles(p.m) <= static_cast<double>(CeilDiv(tiles, multiprocessors)) * tile);
}

// In columns of W that a multiprocessor reads; a block reads the rows besides. The widest tile of halves
// holds so many registers that blocks do not overlap (2 % on an H200). Weights that are widened: in
// HopperCost's cycles (H100: within a tenth for 9 to 16 rows).
double StreamCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto blocks = static_cast<double>(CeilDiv(p.n, plan.tile_columns));
  if (QuantisesFew(p, packing))  // in HopperCost's cycles
    return Delay(p, plan, packing) + 1100 +
           static_cast<double>(p.k) * std::max(static_cast<double>(p.n) / (11 * multiprocessors),
                                               std::ceil(blocks / multiprocessors) * plan.tile_columns / 15);
  if (packing != Packing::kInt8) {
    const double alone = packing == Packing::kHalf && plan.tile_columns == 96 ? 1.03 : 1.0;
    return std::ceil(blocks / multiprocessors) * (plan.tile_columns + 0.25 * plan.tile_rows) * alone;
  }
  // A row has twice the bytes of a column. Two blocks together take less time than one after the other.
  double rounds = std::ceil(blocks / multiprocessors);
  if (FitsTwice(packing, plan.tile_columns, plan.tile_rows) && blocks > multiprocessors) {
    const double pairs = std::floor(blocks / (2.0 * multiprocessors)),
                 rest = blocks - pairs * 2 * multiprocessors;
    rounds = 1.6 * (pairs + (rest > multiprocessors ? 1 : 0)) + (rest > 0 && rest <= multiprocessors ? 1 : 0);
  }
  return Delay(p, plan, packing) + 3700 +
         0.046 * static_cast<double>(p.k) * rounds * (plan.tile_columns + 1.25 * plan.tile_rows);
}

// In cycles of a multiprocessor for each element of K: a tile takes as long as its matrix instructions or its
// loads.
double TileCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns) * CeilDiv(p.m, plan.tile_rows));
  const double compute = plan.tile_columns * plan.tile_rows / (1024.0 * MatrixRate(packing));
  const double load = (ColumnBytes(packing) * plan.tile_columns + RowBytes(packing) * plan.tile_rows) / 32.0;
  return std::ceil(tiles / multiprocessors) * std::max(compute, load);
}

// Comparable within a family, and between kHopper and kStream for weights that are widened.
double Cost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  if (plan.family == Family::kStream) return StreamCost(p, plan, packing, multiprocessors);
  if (plan.family == Family::kTile) return TileCost(p, plan, packing, multiprocessors);
  return HopperCost(p, plan, packing, multiprocessors);
}

// Few rows are read once, whatever the device. More than eight of halves rather by copies that hold no
// registers; with weights that must be widened, or rows that are quantised, by whichever costs less. What
// else there is goes to kTile where there is no wgmma.
int OrderOf(Family family, const Problem& p, Packing packing) {
  if (family == Family::kTile) return 2;
  if (QuantisesFew(p, packing) || (p.m > 8 && packing == Packing::kInt8)) return 0;
  const Family first = p.m > 8 && packing == Packing::kHalf ? Family::kHopper : Family::kStream;
  return family == first ? 0 : 1;
}

bool ServesRows(const Plan& plan, const Problem& p, Packing packing) {
  if (p.m > kLongest) return false;
  if (plan.family == Family::kStream) {
    // Eight rows in tiles of 16 would only waste work. One row of floats alone has a tile of its own.
    const bool one = packing == Packing::kTf32 && p.m == 1;
    return plan.tile_rows == (one ? 1 : p.m <= 8 ? 8 : 16) && p.m <= plan.tile_rows;
  }
  // Outputs that nobody wants bound neither rows nor columns.
  return CeilDiv(p.m, plan.tile_rows) * CeilDiv(p.n, plan.tile_columns) <= kLongest;
}

bool ServesDevice(const Plan& plan, const Device& device) {
  if (plan.family == Family::kHopper) return device.architecture == 90;
  // Before, the wider tiles want more shared memory than there is.
  return plan.family == Family::kStream || device.architecture >= 80 || plan.tile_columns <= 64;
}

}  // namespace

Packing ChoosePacking(const Problem& p, const Device& device) {
  if (p.k == 0 || p.n == 0 || p.k > kLongest || p.n > kLongest || NonEmptySplits(p) > kMaxSplits)
    return Packing::kNone;
  if (device.architecture < (p.t == DType::kBFloat16 ? 80 : 75)) return Packing::kNone;
  const bool plain = p.scale_layout == ScaleLayout::kColumnGroups && !p.has_zero_point;
  // Sums of int8 products are int32.
  constexpr int64_t kLongestInt8Sum = std::numeric_limits<int32_t>::max() / (127 * 128);
  if (p.activation_quant) return plain && p.k <= kLongestInt8Sum ? Packing::kInt8Activations : Packing::kNone;
  if (p.t == DType::kFloat) return device.tf32 && device.architecture >= 80 ? Packing::kTf32 : Packing::kNone;
  return p.tw == DType::kInt8 && plain ? Packing::kInt8 : Packing::kHalf;
}

bool Serves(const Plan& plan, const Problem& p, const Device& device, Packing packing, bool aligned) {
  if (plan.family == Family::kGeneric) return plan.rows == Rows::kFloat;
  if (packing == Packing::kNone || packing != ChoosePacking(p, device)) return false;
  if (plan.rows != RowsOf(p, packing, aligned)) return false;
  const bool there = std::ranges::any_of(kTiles, [&](const Tile& tile) {
    const Cluster cluster{plan.cluster_columns, plan.cluster_rows};
    return PlanOf(tile, plan.rows, cluster, plan.shares) == plan &&
           (!plan.shares || MayShare(p, tile, plan.rows)) &&
           MayCluster(p, tile, packing, cluster, device.multiprocessors);
  });
  if (plan.family == Family::kHopper) {
    if (!HasHopperTile(packing, TileGroups(plan.tile_columns), plan.tile_rows)) return false;
    if (IsNarrow(plan.tile_columns) && !MayBeNarrow(packing, plan.tile_rows)) return false;
  }
  return there && ServesRows(plan, p, packing) && ServesDevice(plan, device);
}

std::vector<Plan> Candidates(const Problem& p, const Device& device, Packing packing, bool aligned) {
  std::vector<Plan> plans;
  if (packing != Packing::kNone && p.m > 0) {
    const Rows rows = RowsOf(p, packing, aligned);
    for (const Tile& tile : kTiles)
      for (const Cluster& cluster : kClusters) {
        Plan plan = PlanOf(tile, rows, cluster);
        if (!Serves(plan, p, device, packing, aligned)) continue;
        // Of those that differ in this alone, the one that is expected to be faster is first.
        if (MayShare(p, tile, rows)) {
          plan.shares = SharesInTime(p, plan, packing, device.multiprocessors);
          plans.push_back(plan);
          plan.shares = !plan.shares;
        }
        plans.push_back(plan);
      }
    std::ranges::stable_sort(plans, {}, [&](const Plan& plan) {
      return std::pair(OrderOf(plan.family, p, packing), Cost(p, plan, packing, device.multiprocessors));
    });
  }
  plans.push_back(Plan{});
  return plans;
}

Plan MakePlan(const Problem& p, const Device& device, Packing packing, bool aligned) {
  return Candidates(p, device, packing, aligned).front();
}

std::vector<Plan> Alternatives(const Problem& p, const Device& device, Packing packing, bool aligned) {
  std::vector<Plan> plans;
  for (const Plan& plan : Candidates(p, device, packing, aligned)) {
    const bool first = plans.empty();
    // The generic family is for what no other serves.
    if (!first && plan.family == Family::kGeneric) continue;
    // kStream alone multiplies what TensorFloat32 leaves out.
    const bool rounds = packing == Packing::kTf32 && plan.family != Family::kStream;
    if (!first && rounds && plans.front().family == Family::kStream) continue;
    plans.push_back(plan);
  }
  return plans;
}

bool ComputesStatistics(const Plan& plan) {
  if (plan.rows != Rows::kInput && plan.rows != Rows::kPadded) return false;
  return plan.family == Family::kStream ||
         (plan.family == Family::kHopper && plan.tile_rows <= kMostMomentRows);
}

std::string ToString(const Plan& plan) {
  static constexpr const char* kFamilies[] = {"generic", "stream", "tile", "hopper"};
  static constexpr const char* kRows[] = {"input", "padded", "normalised", "int8", "float"};
  std::string text = kFamilies[static_cast<int>(plan.family)];
  const auto add = [&text](const char* before, int value) {
    text.append(before).append(std::to_string(value));
  };
  if (plan.tile_columns > 0) {
    add(" ", plan.tile_columns);
    add("x", plan.tile_rows);
  }
  if (plan.cluster_columns * plan.cluster_rows > 1) {
    add(", clusters of ", plan.cluster_columns);
    add("x", plan.cluster_rows);
  }
  text.append(", rows ").append(kRows[static_cast<int>(plan.rows)]);
  return plan.shares ? text.append(", shared statistics") : text;
}

}  // namespace qkvgemm::cuda
