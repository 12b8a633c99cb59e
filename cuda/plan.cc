#include "cuda/plan.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "cuda/layout.h"

namespace qkvgemm::cuda {
namespace {

bool IsHalf(DType t) { return t == DType::kFloat16 || t == DType::kBFloat16; }

// The matrix families index with int, and their tensor maps with 32 bits.
bool FitsInt(const Problem& p) {
  constexpr int64_t kLimit = std::numeric_limits<int>::max() / 2;
  return p.m <= kLimit && p.n <= kLimit && p.k <= kLimit;
}

int NonEmptySplits(const Problem& p) {
  int count = 0;
  for (int64_t s = 0; s < p.num_splits; ++s) count += p.splits[s] > 0;
  return count;
}

Rows RowsOf(const Problem& p, Packing packing, bool aligned) {
  if (packing == Packing::kInt8Activations) return Rows::kQuantised;
  // Folding gamma into int8 weights would round them again; the rows take it instead.
  if (packing == Packing::kInt8 && p.norm != NormType::kNone) return Rows::kNormalised;
  return aligned && p.k % 8 == 0 ? Rows::kInput : Rows::kPadded;
}

// The tiles of cuda/hopper_sm90.cu: columns, rows, blocks of a cluster that load rows together.
struct HopperTile {
  int columns, rows, share;
};
constexpr HopperTile kHopperTiles[] = {{64, 16, 1},   {128, 16, 1},  {64, 32, 1},  {128, 32, 1},
                                       {64, 64, 1},   {128, 64, 1},  {192, 64, 1}, {128, 128, 1},
                                       {192, 128, 1}, {128, 256, 1}, {128, 256, 2}};

Plan HopperPlan(const HopperTile& tile, Rows rows) {
  Plan plan;
  plan.family = Family::kHopper;
  plan.rows = rows;
  plan.tile_columns = tile.columns;
  plan.tile_rows = tile.rows;
  plan.share = tile.share;
  return plan;
}

// An estimate in cycles of a multiprocessor: each tile as long as its matrix instructions or its loads take
// (measured on an H200: 42 bytes a cycle), or all of them as long as W takes from memory; and a share of the
// former where it is the latter that counts, since neither hides the other completely.
double HopperCost(const Problem& p, const Plan& plan, Packing packing, int multiprocessors) {
  const auto row_tiles = static_cast<double>(CeilDiv(p.m, plan.tile_rows));
  const double tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns)) * row_tiles;
  const auto depth = static_cast<double>(RoundUp(p.k, PieceDepth(packing)));
  const double size = static_cast<double>(plan.tile_columns) * plan.tile_rows;
  const double compute = depth * size / (packing == Packing::kInt8Activations ? 8192.0 : 4096.0);
  const double column_bytes = packing == Packing::kHalf ? 2.0 : 1.0;
  const double row_bytes = packing == Packing::kInt8Activations ? 1.0 : 2.0;
  const double load = depth * (column_bytes * plan.tile_columns + row_bytes * plan.tile_rows) / 42.0;
  const double write = 500 + size / 13;
  const double multiply = std::ceil(tiles / multiprocessors) * (std::max(compute, load) + write);
  const double memory =
      depth * static_cast<double>(p.n) * column_bytes / 2400.0 * (1 + 0.02 * (row_tiles - 1));
  return std::max(multiply, memory) + 0.25 * std::min(multiply, memory);
}

struct Tile {
  int columns, rows;
};
// The tiles of cuda/stream.cu.
constexpr Tile kStreamTiles[] = {{16, 8}, {32, 8}, {48, 8}, {96, 8}, {16, 16}, {32, 16}, {48, 16}, {96, 16}};

Plan TilePlan(Family family, const Tile& tile, Rows rows) {
  Plan plan;
  plan.family = family;
  plan.rows = rows;
  plan.tile_columns = tile.columns;
  plan.tile_rows = tile.rows;
  return plan;
}

// The tiles of cuda/tile.cu.
constexpr Tile kTileTiles[] = {{64, 32}, {64, 64}, {128, 64}, {128, 128}};

bool HasTile(const Tile* first, const Tile* last, const Plan& plan) {
  return std::any_of(first, last,
                     [&](const Tile& tile) { return TilePlan(plan.family, tile, plan.rows) == plan; });
}

bool ServesStream(const Plan& plan, const Problem& p) {
  // Eight rows in tiles of 16 would only waste work.
  return p.m <= plan.tile_rows && (p.m > 8 || plan.tile_rows == 8) &&
         HasTile(std::begin(kStreamTiles), std::end(kStreamTiles), plan);
}

bool ServesTile(const Plan& plan, const Device& device) {
  // The wider tiles want more shared memory than there is.
  return (device.architecture >= 80 || plan.tile_columns <= 64) &&
         HasTile(std::begin(kTileTiles), std::end(kTileTiles), plan);
}

// In columns of W that a multiprocessor reads; a block reads the rows besides.
double StreamCost(const Problem& p, const Plan& plan, int multiprocessors) {
  const auto blocks = static_cast<double>(CeilDiv(p.n, plan.tile_columns));
  return std::ceil(blocks / multiprocessors) * (plan.tile_columns + 0.25 * plan.tile_rows);
}

// In cycles of a multiprocessor for each element of K: a tile takes as long as its matrix instructions or its
// loads.
double TileCost(const Problem& p, const Plan& plan, int multiprocessors) {
  const auto tiles = static_cast<double>(CeilDiv(p.n, plan.tile_columns) * CeilDiv(p.m, plan.tile_rows));
  const double compute = plan.tile_columns * plan.tile_rows / 1024.0;
  const double load = 2.0 * (plan.tile_columns + plan.tile_rows) / 32.0;
  return std::ceil(tiles / multiprocessors) * std::max(compute, load);
}

}  // namespace

Packing ChoosePacking(const Problem& p, const Device& device) {
  if (!IsHalf(p.t) || p.k == 0 || p.n == 0 || !FitsInt(p) || NonEmptySplits(p) > kMaxSplits)
    return Packing::kNone;
  if (device.architecture < (p.t == DType::kBFloat16 ? 80 : 75)) return Packing::kNone;
  if (p.tw != DType::kInt8) return Packing::kHalf;
  const bool plain = p.scale_layout == ScaleLayout::kColumnGroups && !p.has_zero_point;
  // Sums of int8 products are int32.
  constexpr int64_t kLongestInt8Sum = std::numeric_limits<int32_t>::max() / (127 * 128);
  if (p.activation_quant) return plain && p.k <= kLongestInt8Sum ? Packing::kInt8Activations : Packing::kNone;
  return plain ? Packing::kInt8 : Packing::kHalf;
}

bool Serves(const Plan& plan, const Problem& p, const Device& device, Packing packing, bool aligned) {
  if (plan.family == Family::kGeneric) return plan.rows == Rows::kFloat;
  if (packing == Packing::kNone || packing != ChoosePacking(p, device)) return false;
  if (plan.rows != RowsOf(p, packing, aligned)) return false;
  if (plan.family == Family::kStream) return ServesStream(plan, p);
  if (plan.family == Family::kTile) return ServesTile(plan, device);
  if (plan.family != Family::kHopper || device.architecture != 90) return false;
  return std::any_of(std::begin(kHopperTiles), std::end(kHopperTiles),
                     [&](const HopperTile& tile) { return HopperPlan(tile, plan.rows) == plan; });
}

std::vector<Plan> Candidates(const Problem& p, const Device& device, Packing packing, bool aligned) {
  std::vector<Plan> plans;
  if (packing != Packing::kNone && p.m > 0) {
    const Rows rows = RowsOf(p, packing, aligned);
    for (const HopperTile& tile : kHopperTiles) {
      const Plan plan = HopperPlan(tile, rows);
      if (Serves(plan, p, device, packing, aligned)) plans.push_back(plan);
    }
    std::stable_sort(plans.begin(), plans.end(), [&](const Plan& a, const Plan& b) {
      return HopperCost(p, a, packing, device.multiprocessors) <
             HopperCost(p, b, packing, device.multiprocessors);
    });
    // Few rows are read once, whatever the device. Others go to kTile where there is no wgmma.
    const auto best_first = [&](Family family, const auto& tiles, const auto& cost) {
      std::vector<Plan> sorted;
      for (const Tile& tile : tiles) {
        const Plan plan = TilePlan(family, tile, rows);
        if (Serves(plan, p, device, packing, aligned)) sorted.push_back(plan);
      }
      std::stable_sort(sorted.begin(), sorted.end(), [&](const Plan& a, const Plan& b) {
        return cost(p, a, device.multiprocessors) < cost(p, b, device.multiprocessors);
      });
      return sorted;
    };
    const std::vector<Plan> stream = best_first(Family::kStream, kStreamTiles, StreamCost);
    const std::vector<Plan> tile = best_first(Family::kTile, kTileTiles, TileCost);
    plans.insert(plans.begin(), stream.begin(), stream.end());
    plans.insert(plans.end(), tile.begin(), tile.end());
  }
  plans.push_back(Plan{});
  return plans;
}

Plan MakePlan(const Problem& p, const Device& device, Packing packing, bool aligned) {
  return Candidates(p, device, packing, aligned).front();
}

bool ComputesStatistics(const Plan& plan, Packing packing) {
  return plan.family == Family::kStream && packing == Packing::kHalf;
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
  if (plan.share > 1) add(" share ", plan.share);
  return text.append(", rows ").append(kRows[static_cast<int>(plan.rows)]);
}

}  // namespace qkvgemm::cuda
