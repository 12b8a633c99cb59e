#include "cuda/plan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "cuda/layout.h"
#include "cuda/plan_cost.h"

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
    {Family::kHopper, 128, 16},  {Family::kHopper, 160, 16},  {Family::kHopper, 192, 16},
    {Family::kHopper, 64, 32},   {Family::kHopper, 80, 32},   {Family::kHopper, 96, 32},
    {Family::kHopper, 128, 32},  {Family::kHopper, 160, 32},  {Family::kHopper, 192, 32},
    {Family::kHopper, 64, 64},   {Family::kHopper, 128, 64},  {Family::kHopper, 160, 64},
    {Family::kHopper, 192, 64},  {Family::kHopper, 64, 96},   {Family::kHopper, 128, 96},
    {Family::kHopper, 128, 128}, {Family::kHopper, 192, 128}, {Family::kHopper, 192, 192},
    {Family::kHopper, 128, 256}, {Family::kHopper, 192, 256}, {Family::kTile, 64, 32},
    {Family::kTile, 64, 64},     {Family::kTile, 128, 64},    {Family::kTile, 128, 128}};

// Parts of pieces keep their swizzle, and are whole 16 columns of a warp.
static_assert(std::ranges::all_of(kTiles, [](const Tile& tile) { return tile.columns % 16 == 0; }));

// Clusters of blocks: tiles along the columns and the rows.
struct Cluster {
  int columns, rows;
};
constexpr Cluster kClusters[] = {{1, 1}, {2, 2}, {4, 1}, {1, 2}, {4, 2}, {8, 1}};

// Blocks that share out K of a tile.
constexpr int kParts[] = {1, 2, 3, 4, 6, 8};

Plan PlanOf(const Tile& tile, Rows rows, Cluster cluster = {1, 1}, int k_parts = 1, bool shares = false) {
  Plan plan;
  plan.cluster_columns = cluster.columns, plan.cluster_rows = cluster.rows;
  plan.k_parts = k_parts;
  plan.shares = shares;
  plan.family = tile.family;
  plan.rows = rows;
  plan.tile_columns = tile.columns;
  plan.tile_rows = tile.rows;
  return plan;
}

constexpr int kWholeDevice = 64;  // multiprocessors; the smallest of sm_90 that is sold has 78

// Whether blocks may form clusters: whole ones, with one tile for each block. Those of four and eight must
// lie in one part of the device, where they leave some multiprocessors out: all of 128 blocks do not start at
// once.
bool MayCluster(const Problem& p, const Tile& tile, Packing packing, Cluster cluster, int multiprocessors) {
  const bool there = std::ranges::any_of(kClusters, [&](const Cluster& other) {
    return other.columns == cluster.columns && other.rows == cluster.rows;
  });
  if (!there) return false;
  const int size = cluster.columns * cluster.rows;
  if (size == 1) return true;
  // A part of a device (MIG, MPS) need not have so many multiprocessors together, and the launch would fail.
  if (multiprocessors < kWholeDevice) return false;
  if (tile.rows % (8 * cluster.columns) != 0) return false;  // a block's part of them is whole swizzles
  if (p.m <= 32) return false;                               // there are tiles of 16 and 32 rows
  const int64_t columns = CeilDiv(p.n, tile.columns), rows = CeilDiv(p.m, tile.rows);
  return tile.family == Family::kHopper && !IsNarrow(tile.columns) &&
         HasClusterTile(packing, TileGroups(tile.columns), tile.rows) && columns % cluster.columns == 0 &&
         rows % cluster.rows == 0 &&
         columns * rows <= (size >= 4 ? multiprocessors * 7 / 8 : multiprocessors);
}

// Whether a cluster of so many blocks may share out K of each tile. So many clusters of three, four and eight
// start at once that 110 to 120 of an H100's multiprocessors are taken, of six 102.
bool MayCutK(const Problem& p, const Tile& tile, Packing packing, int parts, int multiprocessors) {
  if (parts == 1) return true;
  if (std::ranges::find(kParts, parts) == std::end(kParts)) return false;
  if (tile.family != Family::kHopper) return false;
  if (multiprocessors < kWholeDevice) return false;  // as for clusters
  const int blocks = parts == 2   ? multiprocessors
                     : parts <= 4 ? multiprocessors * 7 / 8
                                  : multiprocessors * 3 / 4;
  // Of more rows nothing was timed where weights are widened, which each tile of rows does anew.
  constexpr int64_t kMostWidened = 128;
  if (packing == Packing::kInt8 && p.m > kMostWidened) return false;
  constexpr int64_t kFewestPieces = 2;
  return CeilDiv(p.k, PieceDepth(packing)) >= kFewestPieces * parts &&
         CeilDiv(p.n, tile.columns) * CeilDiv(p.m, tile.rows) <= blocks / parts;
}

// Whether tiles of a family may leave the statistics to blocks that share them out.
bool MayShare(const Problem& p, const Plan& plan, Packing packing) {
  return plan.family == Family::kHopper && plan.rows == Rows::kInput && plan.k_parts == 1 &&
         !ComputesStatistics(plan, packing) && p.norm != NormType::kNone;
}

// Few rows are read once, whatever the device. More than eight of halves rather by copies that hold no
// registers; fewer too, but for short K, whose time are starts and ends, and where columns take more than one
// round. With weights that must be widened, or rows that are quantised, by whichever costs less. What else
// there is goes to kTile where there is no wgmma.
int OrderOf(Family family, const Problem& p, Packing packing, int multiprocessors) {
  if (family == Family::kTile) return 2;
  if (QuantisesFew(p, packing) || (p.m > 8 && packing == Packing::kInt8)) return 0;
  constexpr int64_t kShort = 1536, kWidest = 128;
  const bool copies =
      packing == Packing::kHalf && (p.m > 8 || (p.k >= kShort && CeilDiv(p.n, kWidest) <= multiprocessors));
  return family == (copies ? Family::kHopper : Family::kStream) ? 0 : 1;
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
    return PlanOf(tile, plan.rows, cluster, plan.k_parts, plan.shares) == plan &&
           (!plan.shares || MayShare(p, plan, packing)) &&
           MayCluster(p, tile, packing, cluster, device.multiprocessors) &&
           (plan.k_parts == 1 || (cluster.columns == 1 && cluster.rows == 1 &&
                                  MayCutK(p, tile, packing, plan.k_parts, device.multiprocessors)));
  });
  if (plan.family == Family::kHopper) {
    if (!HasHopperTile(packing, TileGroups(plan.tile_columns), plan.tile_rows, plan.k_parts)) return false;
    if (IsNarrow(plan.tile_columns) && !MayBeNarrow(packing, plan.tile_rows, plan.k_parts > 1)) return false;
  }
  return there && ServesRows(plan, p, packing) && ServesDevice(plan, device);
}

std::vector<Plan> Candidates(const Problem& p, const Device& device, Packing packing, bool aligned) {
  std::vector<Plan> plans;
  if (packing != Packing::kNone && p.m > 0) {
    const Rows rows = RowsOf(p, packing, aligned);
    for (const Tile& tile : kTiles) {
      for (const Cluster& cluster : kClusters) {
        Plan plan = PlanOf(tile, rows, cluster);
        if (!Serves(plan, p, device, packing, aligned)) continue;
        // Of those that differ in this alone, the one that is expected to be faster is first.
        if (MayShare(p, plan, packing)) {
          plan.shares = SharesInTime(p, plan, packing, device.multiprocessors);
          plans.push_back(plan);
          plan.shares = !plan.shares;
        }
        plans.push_back(plan);
      }
      for (const int parts : kParts) {
        const Plan plan = PlanOf(tile, rows, {1, 1}, parts);
        if (parts > 1 && Serves(plan, p, device, packing, aligned)) plans.push_back(plan);
      }
    }
    std::ranges::stable_sort(plans, {}, [&](const Plan& plan) {
      return std::pair(OrderOf(plan.family, p, packing, device.multiprocessors),
                       Cost(p, plan, packing, device.multiprocessors));
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

bool ComputesStatistics(const Plan& plan, Packing packing) {
  if (plan.rows != Rows::kInput && plan.rows != Rows::kPadded) return false;
  return plan.family == Family::kStream ||
         (plan.family == Family::kHopper &&
          (plan.cluster_columns * plan.cluster_rows == 1
               ? TakesMoments(packing, plan.tile_rows, plan.k_parts > 1)
               : plan.rows == Rows::kInput && ClusterTakesStatistics(TileGroups(plan.tile_columns),
                                                                     plan.tile_rows, plan.cluster_columns)));
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
  if (plan.k_parts > 1) add(", parts of K: ", plan.k_parts);
  text.append(", rows ").append(kRows[static_cast<int>(plan.rows)]);
  return plan.shares ? text.append(", shared statistics") : text;
}

}  // namespace qkvgemm::cuda
