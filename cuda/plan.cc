#include "cuda/plan.h"

#include <algorithm>
#include <array>
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

// The tiles of cuda/hopper_sm90.cu: columns, rows, blocks that load rows together, blocks that share a tile.
constexpr std::array<std::array<int, 4>, 14> kHopperTiles = {{
    {64, 16, 1, 1},
    {128, 16, 1, 1},
    {64, 16, 1, 2},
    {64, 64, 1, 1},
    {64, 64, 1, 2},
    {128, 64, 1, 1},
    {128, 64, 1, 2},
    {192, 64, 1, 1},
    {128, 128, 1, 1},
    {128, 128, 2, 1},
    {192, 128, 1, 1},
    {192, 128, 2, 1},
    {128, 256, 1, 1},
    {128, 256, 2, 1},
}};

Plan HopperPlan(const std::array<int, 4>& tile, Rows rows) {
  Plan plan;
  plan.family = Family::kHopper;
  plan.rows = rows;
  plan.tile_columns = tile[0];
  plan.tile_rows = tile[1];
  plan.share = tile[2];
  plan.depth_splits = tile[3];
  return plan;
}

// An estimate in arbitrary units: rounds of tiles, each as long as its matrix instructions or its loads take.
double HopperCost(const Problem& p, const Plan& plan, int multiprocessors) {
  const int64_t blocks = CeilDiv(p.n, plan.tile_columns) * CeilDiv(p.m, plan.tile_rows) * plan.depth_splits;
  const auto rounds = static_cast<double>(CeilDiv(blocks, multiprocessors));
  const double depth = static_cast<double>(p.k) / plan.depth_splits;
  const double compute = depth * plan.tile_columns * plan.tile_rows / 4096.0;
  const double load = depth * 2 * (plan.tile_columns + plan.tile_rows) / 42.0;
  const double write = 8.0 * plan.tile_columns * plan.tile_rows / 32.0 / 4.0;
  return rounds * (std::max(compute, load) + write) + 500.0 * (plan.depth_splits - 1);
}

}  // namespace

Packing ChoosePacking(const Problem& p, const Device& device) {
  if (!IsHalf(p.t) || p.k == 0 || p.n == 0 || !FitsInt(p) || NonEmptySplits(p) > kMaxSplits) return Packing::kNone;
  if (device.architecture < 90 || device.architecture >= 100) return Packing::kNone;
  if (p.tw != DType::kInt8) return Packing::kHalf;
  const bool plain = p.scale_layout == ScaleLayout::kColumnGroups && !p.has_zero_point;
  if (p.activation_quant) return plain ? Packing::kInt8Activations : Packing::kNone;
  return plain ? Packing::kInt8 : Packing::kHalf;
}

bool Serves(const Plan& plan, const Problem& p, const Device& device, Packing packing, bool aligned) {
  if (plan.family == Family::kGeneric) return plan.rows == Rows::kFloat;
  if (packing == Packing::kNone || packing != ChoosePacking(p, device)) return false;
  if (plan.rows != RowsOf(p, packing, aligned)) return false;
  if (plan.family != Family::kHopper || device.architecture != 90) return false;
  return std::any_of(kHopperTiles.begin(), kHopperTiles.end(),
                     [&](const auto& tile) { return HopperPlan(tile, plan.rows) == plan; });
}

std::vector<Plan> Candidates(const Problem& p, const Device& device, Packing packing, bool aligned) {
  std::vector<Plan> plans;
  if (packing != Packing::kNone && p.m > 0) {
    const Rows rows = RowsOf(p, packing, aligned);
    for (const auto& tile : kHopperTiles) {
      const Plan plan = HopperPlan(tile, rows);
      if (Serves(plan, p, device, packing, aligned)) plans.push_back(plan);
    }
    std::stable_sort(plans.begin(), plans.end(), [&](const Plan& a, const Plan& b) {
      return HopperCost(p, a, device.multiprocessors) < HopperCost(p, b, device.multiprocessors);
    });
  }
  plans.push_back(Plan{});
  return plans;
}

Plan MakePlan(const Problem& p, const Device& device, Packing packing, bool aligned) {
  return Candidates(p, device, packing, aligned).front();
}

std::string ToString(const Plan& plan) {
  static constexpr const char* kFamilies[] = {"generic", "stream", "tile", "hopper"};
  static constexpr const char* kRows[] = {"input", "padded", "normalised", "int8", "float"};
  std::string text = kFamilies[static_cast<int>(plan.family)];
  if (plan.tile_columns > 0) text += " " + std::to_string(plan.tile_columns) + "x" + std::to_string(plan.tile_rows);
  if (plan.share > 1) text += " share " + std::to_string(plan.share);
  if (plan.depth_splits > 1) text += " depth " + std::to_string(plan.depth_splits);
  return text + ", rows " + kRows[static_cast<int>(plan.rows)];
}

}  // namespace qkvgemm::cuda
