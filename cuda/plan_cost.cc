#include "cuda/plan_cost.h"

#include <algorithm>
#include <cmath>

#include "cuda/layout.h"

namespace qkvgemm::cuda {

bool QuantisesFew(const Problem& p, Packing packing) {
  return packing == Packing::kInt8Activations && p.m > 8 && p.m <= 16;
}

namespace {

// Bytes of the elements that a product reads.
double ColumnBytes(Packing packing) {
  return packing == Packing::kTf32 ? 4 : packing == Packing::kHalf ? 2 : 1;
}
double RowBytes(Packing packing) {
  return packing == Packing::kTf32 ? 4 : packing == Packing::kInt8Activations ? 1 : 2;
}
// Products that matrix units form in a cycle of a multiprocessor, relative to those of halves.
double MatrixRate(Packing packing) { return 2 / RowBytes(packing); }

// Tiles of few rows of halves, which take their statistics themselves: PiecesCycles() knows them.
bool FewHalves(const Plan& plan, Packing packing) {
  return packing == Packing::kHalf && plan.family == Family::kHopper &&
         TakesMoments(packing, plan.tile_rows, plan.k_parts > 1);
}

// Cycles that such a tile takes, and the writing of its results. A piece of K takes 160 whatever the tile,
// from one signal to the next, and neither its loads nor its statistics are hidden behind that. Fitted to the
// times of 1378 plans of 15 shapes, K = 768 to 8192, on an H200: of the plans that were timed, the one that
// is chosen took 0.7 % longer than the fastest in the mean of 82 calls, 9 % at most.
double PiecesCycles(const Problem& p, const Plan& plan) {
  const auto pieces = static_cast<double>(CeilDiv(CeilDiv(p.k, plan.k_parts), PieceDepth(Packing::kHalf)));
  return pieces * (160 + 1.5 * plan.tile_columns + 3.75 * plan.tile_rows) + 2700 + 5 * plan.tile_rows;
}

// Cycles until the first of the blocks that share out K has the sums of the others, behind a barrier of the
// cluster.
double PartsCycles(const Plan& plan, double barrier = 620, double bytes_a_cycle = 45) {
  if (plan.k_parts == 1) return 0;
  const int sums = TileGroups(plan.tile_columns) * kPieceColumns * plan.tile_rows;
  return barrier + (plan.k_parts - 1) * sums * 4 / bytes_a_cycle;
}

// Few rows and int8 weights: WidenedCycles() knows them.
constexpr int64_t kFewWidened = 64;
bool FewWidened(const Problem& p, const Plan& plan, Packing packing) {
  return packing == Packing::kInt8 && plan.family == Family::kHopper && plan.tile_rows <= kFewWidened &&
         p.m <= kFewWidened;
}
// What PiecesCycles() and PartsCycles() are to halves; pieces take longer the more groups widen them. Fitted
// to the times of 388 plans of 11 shapes, K = 768 to 8192, on H100s: of the plans that were timed, the one
// that is chosen took 0.9 % longer than the fastest in the mean of 31 calls, 12 % at most.
double WidenedCycles(const Problem& p, const Plan& plan) {
  const auto pieces = static_cast<double>(CeilDiv(CeilDiv(p.k, plan.k_parts), PieceDepth(Packing::kInt8)));
  const int groups = TileGroups(plan.tile_columns);
  return pieces * (133 + 0.25 * plan.tile_rows + groups * (44 + 0.75 * plan.tile_rows)) + 3280 +
         1.1 * groups * plan.tile_rows + PartsCycles(plan, 640, 99);
}

// Blocks start while those of the call before still run, if there are multiprocessors for both: how much
// there are too few, from 0 to 1.
double Crowded(double blocks, int multiprocessors) {
  return std::clamp((blocks - multiprocessors / 2.0) / (multiprocessors / 3.0), 0.0, 1.0);
}

// Cycles that another tile's matrix instructions or its loads take (48 bytes each, as measured on an H200:
// that gives 65.5, 54.6 and 43.7 thousand for tiles of 128 x 256, 192 x 128 and 128 x 128 at K = 4096,
// where 66.3, 53.5 and 41.6 were counted). Half of widening int8 weights is hidden behind the products, and
// so are most statistics of one tile of rows.
double TileCycles(const Problem& p, const Plan& plan, Packing packing) {
  const auto depth = static_cast<double>(RoundUp(CeilDiv(p.k, plan.k_parts), PieceDepth(packing)));
  const double size = static_cast<double>(TileGroups(plan.tile_columns)) * kPieceColumns * plan.tile_rows;
  const double compute = depth * size / (2048.0 * MatrixRate(packing));
  const double load =
      depth * (ColumnBytes(packing) * plan.tile_columns + RowBytes(packing) * plan.tile_rows) / 48.0;
  const bool widened = packing == Packing::kInt8;
  double statistics = 0;
  if (ComputesStatistics(plan, packing))
    statistics = depth * (p.m <= plan.tile_rows ? 1.5 : plan.tile_rows / 8.0);
  return std::max(compute, load + statistics) + (widened ? compute / 2 : 0);
}

// A kernel before the product, if only to clear counters, delays it.
double Delay(const Problem& p, const Plan& plan, Packing packing) {
  const bool alone =
      plan.rows == Rows::kInput && (p.norm == NormType::kNone || ComputesStatistics(plan, packing));
  return alone ? 0 : packing != Packing::kInt8 ? 2000 : p.m <= kFewWidened ? 420 : 700;
}

double RowTiles(const Problem& p, const Plan& plan) {
  return static_cast<double>(CeilDiv(p.m, plan.tile_rows));
}
// Of a Hopper plan.
double Blocks(const Problem& p, const Plan& plan) {
  return static_cast<double>(CeilDiv(p.n, plan.tile_columns)) * RowTiles(p, plan) * plan.k_parts;
}

// Bytes of W from memory, as fitted with either estimate of a tile.
constexpr double kBytesPerCycle = 2400, kBytesPerCycleOfFewHalves = 3150;

struct Cycles {
  double multiply;  // all rounds of tiles
  double memory;    // as long as W takes from memory, and again in part for each further tile of rows
};
// Where rows are many, and of other types than halves and int8 weights also where they are few.
Cycles TiledCycles(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto depth = static_cast<double>(RoundUp(p.k, PieceDepth(packing)));
  const double rounds = std::ceil(Blocks(p, plan) / multiprocessors);
  const double bytes =
      depth * static_cast<double>(p.n) * ColumnBytes(packing) * (1 + 0.05 * (RowTiles(p, plan) - 1));
  const double size = static_cast<double>(plan.tile_columns) * plan.tile_rows;
  const double write = 500 + size * static_cast<double>(SizeOf(p.t)) / 26;
  double memory = bytes / kBytesPerCycle;
  // What a multiprocessor takes from memory alone, 18 bytes a cycle, decides against kStream.
  if (QuantisesFew(p, packing)) memory = std::max(memory, rounds * depth * plan.tile_columns / 18);
  return {rounds * (TileCycles(p, plan, packing) + write + PartsCycles(plan)), memory};
}
Cycles HopperCycles(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto [multiply, memory] = TiledCycles(p, plan, packing, multiprocessors);
  const double rounds = std::ceil(Blocks(p, plan) / multiprocessors);
  if (FewHalves(plan, packing))
    return {rounds * (PiecesCycles(p, plan) + PartsCycles(plan)),
            memory * kBytesPerCycle / kBytesPerCycleOfFewHalves};
  if (FewWidened(p, plan, packing)) return {rounds * WidenedCycles(p, plan), memory};
  return {multiply, memory};
}

// What PiecesCycles() leaves out. Tiles of more than 128 columns were the fastest where they fill the device
// with one tile of rows and K in two (H100, K = 4096 and 8192), and at most 3 % faster elsewhere, but up to 8
// % slower.
double FewHalvesFactor(const Problem& p, const Plan& plan, int multiprocessors) {
  if (TileGroups(plan.tile_columns) > 2)
    return plan.k_parts == 2 && p.m <= plan.tile_rows && p.k >= 4096 &&
                   Blocks(p, plan) > 0.9 * multiprocessors
               ? 1.06
               : 1.5;
  return plan.k_parts > 1 && IsNarrow(plan.tile_columns) ? 1.04 : 1.0;
}

// An estimate in cycles of a multiprocessor: the products or W, and a share of the lesser of the two, since
// neither hides the other completely.
double HopperCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const double row_tiles = RowTiles(p, plan);
  const auto [multiply, memory] = HopperCycles(p, plan, packing, multiprocessors);
  const double cycles = std::max(multiply, memory) + 0.25 * std::min(multiply, memory);
  const double crowded = Crowded(Blocks(p, plan), multiprocessors), delay = Delay(p, plan, packing);
  if (FewHalves(plan, packing))
    return delay + 1700 * crowded + FewHalvesFactor(p, plan, multiprocessors) * cycles;
  if (FewWidened(p, plan, packing)) return delay + 1200 * crowded + cycles;
  // Where halves are multiplied, the largest tile is the fastest of those that fill the device as well; those
  // of 96 and 192 rows take longer than their size tells, and so do those with parts of K.
  const bool largest = plan.tile_columns == 192 && plan.tile_rows == 256;
  double factor = largest && packing != Packing::kHalf ? 1.03 : 1.0;
  if (plan.tile_rows == 96) factor = 1.05;
  // Of int8 weights and short K none was timed.
  if (plan.k_parts > 1) factor = packing == Packing::kInt8 && p.k < 2048 ? 1.5 : 1.17;
  if (plan.tile_rows == 192) factor = 1.05;
  // Each tile of rows widens all weights again.
  if (packing == Packing::kInt8 && ComputesStatistics(plan, packing)) factor *= 1 + 0.05 * (row_tiles - 1);
  // Clusters bring up to a tenth where many blocks read the same, or, of one column of tiles, where W takes
  // nearly all of the time or tiles are of 192 x 128; else their blocks wait for each other. (Those of four
  // along the columns gain 4 % on an H100, and lose as much on an H200, whose memory is faster.)
  if (plan.cluster_columns * plan.cluster_rows > 1) {
    const bool gains = plan.cluster_columns == plan.cluster_rows ? row_tiles >= 4
                       : plan.cluster_columns < plan.cluster_rows
                           ? memory > 0.7 * multiply || plan.tile_columns == 192
                           : false;
    factor *= gains ? 0.96 : 1.02;
  }
  return delay + factor * cycles;
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
  return Delay(p, plan, packing) + 3470 +
         0.047 * static_cast<double>(p.k) * rounds * (plan.tile_columns + 1.25 * plan.tile_rows);
}

// In cycles of a multiprocessor for each element of K: a tile takes as long as its matrix instructions or its
// loads.
double TileCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns) * CeilDiv(p.m, plan.tile_rows));
  const double compute = plan.tile_columns * plan.tile_rows / (1024.0 * MatrixRate(packing));
  const double load = (ColumnBytes(packing) * plan.tile_columns + RowBytes(packing) * plan.tile_rows) / 32.0;
  return std::ceil(tiles / multiprocessors) * std::max(compute, load);
}

}  // namespace

bool SharesInTime(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  if (p.m <= plan.tile_rows) {
    const auto [multiply, memory] = TiledCycles(p, plan, packing, multiprocessors);
    if (memory > 1.07 * multiply) return false;
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

double Cost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  if (plan.family == Family::kStream) return StreamCost(p, plan, packing, multiprocessors);
  if (plan.family == Family::kTile) return TileCost(p, plan, packing, multiprocessors);
  return HopperCost(p, plan, packing, multiprocessors);
}

}  // namespace qkvgemm::cuda
