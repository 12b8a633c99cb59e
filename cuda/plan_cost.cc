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

// Cycles until the first of the blocks that share out K has the sums of the others, behind a barrier of the
// cluster.
double PartsCycles(const Plan& plan) {
  if (plan.k_parts == 1) return 0;
  const double sums = static_cast<double>(TileGroups(plan.tile_columns)) * kPieceColumns * plan.tile_rows;
  return 620 + (plan.k_parts - 1) * sums * 4 / 45;
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
  if (ComputesStatistics(plan, packing)) {
    statistics = plan.cluster_columns > 1 ? depth * plan.tile_rows / plan.cluster_columns / 8
                 : p.m <= plan.tile_rows  ? depth * 1.5
                                          : depth * plan.tile_rows / 8;
  }
  return std::max(compute, load + statistics) + (widened ? compute / 2 : 0);
}

// A kernel before the product, if only to clear counters, delays it.
double Delay(const Problem& p, const Plan& plan, Packing packing) {
  const bool alone =
      plan.rows == Rows::kInput && (p.norm == NormType::kNone || ComputesStatistics(plan, packing));
  return alone ? 0 : packing != Packing::kInt8 ? 2000 : 700;
}

double RowTiles(const Problem& p, const Plan& plan) {
  return static_cast<double>(CeilDiv(p.m, plan.tile_rows));
}
// Of a Hopper plan.
double Blocks(const Problem& p, const Plan& plan) {
  return static_cast<double>(CeilDiv(p.n, plan.tile_columns)) * RowTiles(p, plan) * plan.k_parts;
}

constexpr double kBytesPerCycle = 2400;  // of W, from memory

struct Cycles {
  double multiply;  // all rounds of tiles
  double memory;    // as long as W takes from memory, and again in part for each further tile of rows
};
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

// Few rows, or few columns as well, of halves and of int8 weights: FewRowsCost() knows them.
bool FewRows(const Problem& p, Packing packing, int multiprocessors) {
  if (packing == Packing::kInt8) return p.m <= 128;
  return packing == Packing::kHalf && (p.m <= 256 || CeilDiv(p.m, 64) * CeilDiv(p.n, 64) <= multiprocessors);
}

// What FewRowsCost() counts, in cycles.
struct Step {
  double piece, column, row;  // of each piece of K, and for each column and row that a block loads
  double statistics, cluster_statistics;  // for each row of a piece: from the tile's pieces, from memory
  double end, end_size;                   // writing of results, and for each 64 columns and row
  double sum_bytes;                       // of other parts of K, in a cycle
  double hidden;                          // how well products and W's way from memory hide each other
  double shared, before;                  // statistics that all blocks share, a kernel before
  double crowded;
};
// Fitted on H100s to the times of 2626 plans of 12 shapes with 16 to 256 rows, and of 559 of 6 shapes with 16
// to 128: of the plans that were timed, the one that is chosen took 1.2 % longer than the fastest in the mean
// of 49 calls, and 0.7 % of 21, 13 % at most. Of halves W comes at 43 bytes a cycle.
constexpr Step kHalfStep{.piece = 0,
                         .column = 3.0,
                         .row = 1.9,
                         .statistics = 4.7,
                         .cluster_statistics = 3.7,
                         .end = 1500,
                         .end_size = 17.5,
                         .sum_bytes = 40,
                         .hidden = 2.5,
                         .shared = 1700,
                         .before = 3300,
                         .crowded = 2350};
constexpr Step kWidenedStep{.piece = 176,
                            .column = 2.22,
                            .row = 0,
                            .statistics = 3.23,
                            .cluster_statistics = 0,
                            .end = 2980,
                            .end_size = 23.5,
                            .sum_bytes = 48,
                            .hidden = 6.1,
                            .shared = 750,
                            .before = 2010,
                            .crowded = 1870};

// Cycles that a piece of K takes a block.
double PieceCycles(const Problem& p, const Plan& plan, Packing packing, const Step& step) {
  const bool widened = packing == Packing::kInt8, cluster = plan.cluster_columns * plan.cluster_rows > 1;
  const int groups = TileGroups(plan.tile_columns);
  const double rows = static_cast<double>(plan.tile_rows) / plan.cluster_columns;
  double cycles = step.piece + step.column * plan.tile_columns / plan.cluster_rows + step.row * rows;
  // Blocks of a cluster wait for each other.
  if (cluster) cycles += 100;
  if (p.norm != NormType::kNone && ComputesStatistics(plan, packing)) {
    if (cluster) {
      cycles += step.cluster_statistics * rows;
    } else if (groups < 3 || !widened) {  // three groups that widen take longer
      cycles += step.statistics * std::min(plan.tile_rows, 32);
    }
  }
  return widened ? std::max(cycles, 1.9 * groups * plan.tile_rows) : cycles;
}

double FewRowsCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const Step& step = packing == Packing::kInt8 ? kWidenedStep : kHalfStep;
  const int groups = TileGroups(plan.tile_columns);
  const auto pieces = static_cast<double>(CeilDiv(CeilDiv(p.k, plan.k_parts), PieceDepth(packing)));
  const double blocks = Blocks(p, plan), size = static_cast<double>(groups) * plan.tile_rows;
  const double sums = (plan.k_parts - 1) * size * kPieceColumns * 4 / step.sum_bytes;
  const double multiply =
      std::ceil(blocks / multiprocessors) *
      (pieces * PieceCycles(p, plan, packing, step) + step.end + step.end_size * size + sums);
  const double memory = static_cast<double>(p.k) * static_cast<double>(p.n) * ColumnBytes(packing) *
                        (1 + 0.05 * (RowTiles(p, plan) - 1)) / kBytesPerCycle;
  double cycles = std::pow(std::pow(multiply, step.hidden) + std::pow(memory, step.hidden), 1 / step.hidden) +
                  step.crowded * Crowded(blocks, multiprocessors);
  if (plan.k_parts > 1 && IsNarrow(plan.tile_columns) && groups < 3) cycles *= 1.09;
  // Tiles of twice as many rows as there are were never the fastest; the estimates of many columns, of which
  // none was timed, are not trusted to say otherwise.
  constexpr int64_t kFewestRows = 16;
  if (plan.tile_rows >= 2 * std::max(p.m, kFewestRows)) cycles *= 1.3;
  // A kernel that goes before takes the statistics in passing, if a tile does not.
  if (plan.rows != Rows::kInput) return cycles + step.before;
  if (p.norm == NormType::kNone || ComputesStatistics(plan, packing)) return cycles;
  // Those that are not shared in time are waited for.
  if (plan.shares)
    return cycles + (SharesInTime(p, plan, packing, multiprocessors) ? step.shared : 1.1 * step.before);
  return cycles + step.before;
}

// An estimate in cycles of a multiprocessor: the products or W, and a share of the lesser of the two, since
// neither hides the other completely.
double HopperCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  if (FewRows(p, packing, multiprocessors)) return FewRowsCost(p, plan, packing, multiprocessors);
  const double row_tiles = RowTiles(p, plan);
  const auto [multiply, memory] = TiledCycles(p, plan, packing, multiprocessors);
  const double cycles = std::max(multiply, memory) + 0.25 * std::min(multiply, memory);
  // Where halves are multiplied, the largest tile is the fastest of those that fill the device as well; those
  // of 96 and 192 rows take longer than their size tells, and so do those with parts of K.
  const bool largest = plan.tile_columns == 192 && plan.tile_rows == 256;
  double factor = largest && packing != Packing::kHalf ? 1.03 : 1.0;
  if (plan.tile_rows == 96) factor = 1.05;
  if (plan.k_parts > 1) factor = 1.17;
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
  return Delay(p, plan, packing) + factor * cycles;
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
  return Delay(p, plan, packing) + 4860 +
         0.066 * static_cast<double>(p.k) * rounds * (plan.tile_columns + 1.25 * plan.tile_rows);
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
