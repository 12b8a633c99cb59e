// Plans of the CUDA kernels over many shapes, types and devices; needs no GPU. Exits 1 if a plan is wrong.
#include <algorithm>
#include <cstdio>
#include <initializer_list>
#include <limits>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda/layout.h"
#include "cuda/plan.h"

using namespace qkvgemm;
using namespace qkvgemm::cuda;

namespace {

int failures = 0;
long long plans = 0, problems = 0;

std::string Describe(const Problem& p, const Device& d, Packing packing, bool aligned) {
  auto n = [](auto v) { return std::to_string(static_cast<long long>(v)); };
  return "m=" + n(p.m) + " k=" + n(p.k) + " n=" + n(p.n) + " t=" + n(p.t) + " tw=" + n(p.tw) +
         " norm=" + n(p.norm) + " quant=" + n(p.activation_quant) + " splits=" + n(p.num_splits) +
         " sm=" + n(d.architecture) + "x" + n(d.multiprocessors) + " tf32=" + n(d.tf32) +
         " packing=" + n(packing) + " aligned=" + n(aligned);
}

void Expect(bool condition, const char* what, const Problem& p, const Device& d, Packing packing,
            bool aligned, const Plan& plan) {
  if (condition || ++failures > 20) return;
  std::printf("FAIL %s: %s, plan '%s'\n", what, Describe(p, d, packing, aligned).c_str(),
              ToString(plan).c_str());
}

void CheckPlans(const Problem& p, const Device& d, Packing packing, bool aligned) {
  ++problems;
  const Plan chosen = MakePlan(p, d, packing, aligned);
  Expect(Serves(chosen, p, d, packing, aligned), "MakePlan's plan does not serve", p, d, packing, aligned,
         chosen);
  Expect(chosen == MakePlan(p, d, packing, aligned), "MakePlan is not a function", p, d, packing, aligned,
         chosen);
  const std::vector<Plan> all = Candidates(p, d, packing, aligned);
  Expect(!all.empty() && all.front() == chosen, "MakePlan's plan is not the first candidate", p, d, packing,
         aligned, chosen);
  // However many columns there are, which estimates were not fitted to.
  Expect(p.m > 16 || chosen.family != Family::kHopper || chosen.tile_rows <= 32, "few rows in a tile of many",
         p, d, packing, aligned, chosen);
  const std::vector<Plan> alternatives = Alternatives(p, d, packing, aligned);
  Expect(!alternatives.empty() && alternatives.front() == chosen,
         "MakePlan's plan is not the first alternative", p, d, packing, aligned, chosen);
  for (const Plan& plan : alternatives) {
    Expect(std::ranges::find(all, plan) != all.end(), "an alternative is no candidate", p, d, packing,
           aligned, plan);
    Expect(plan == chosen || plan.family != Family::kGeneric, "generic as an alternative", p, d, packing,
           aligned, plan);
    Expect(plan.rows == chosen.rows, "an alternative rounds rows differently", p, d, packing, aligned, plan);
    Expect(packing != Packing::kTf32 || p.m > 16 || chosen.family != Family::kStream ||
               plan.family == Family::kStream,
           "an alternative rounds few float rows to TensorFloat32", p, d, packing, aligned, plan);
  }
  for (size_t i = 0; i < all.size(); ++i, ++plans) {
    Expect(Serves(all[i], p, d, packing, aligned), "a candidate does not serve", p, d, packing, aligned,
           all[i]);
    Expect(!ToString(all[i]).empty(), "a plan has no name", p, d, packing, aligned, all[i]);
    for (size_t j = 0; j < i; ++j) {
      Expect(!(all[i] == all[j]), "a candidate is there twice", p, d, packing, aligned, all[i]);
      Expect(ToString(all[i]) != ToString(all[j]), "two candidates have one name", p, d, packing, aligned,
             all[i]);
    }
    if (all[i].family == Family::kGeneric) continue;
    Expect(!Serves(all[i], p, d, Packing::kNone, aligned), "a matrix plan takes weights that are not packed",
           p, d, packing, aligned, all[i]);
    Expect(d.architecture >= 75, "matrix instructions on a device that lacks them", p, d, packing, aligned,
           all[i]);
    Expect(all[i].family != Family::kHopper || !IsNarrow(all[i].tile_columns) ||
               (packing == Packing::kHalf && all[i].tile_rows <= (all[i].k_parts > 1 ? 64 : 32)),
           "a narrow tile that no kernel has", p, d, packing, aligned, all[i]);
    Expect(all[i].family != Family::kHopper ||
               HasHopperTile(packing, TileGroups(all[i].tile_columns), all[i].tile_rows, all[i].k_parts),
           "a candidate that no kernel has", p, d, packing, aligned, all[i]);
    if (const int columns_of_blocks = all[i].cluster_columns,
        blocks = columns_of_blocks * all[i].cluster_rows;
        blocks > 1) {
      // Its blocks load whole swizzles of eight rows, and whole columns of a piece.
      Expect(HasClusterTile(packing, TileGroups(all[i].tile_columns), all[i].tile_rows) &&
                 all[i].tile_rows % (8 * columns_of_blocks) == 0 && all[i].k_parts == 1 && blocks <= 8,
             "a cluster that no kernel has", p, d, packing, aligned, all[i]);
      // Each warp of four takes as many rows.
      Expect(!ComputesStatistics(all[i], packing) ||
                 (all[i].rows == Rows::kInput && all[i].tile_rows % (4 * columns_of_blocks) == 0 &&
                  TileGroups(all[i].tile_columns) < 3),
             "a cluster that cannot take statistics", p, d, packing, aligned, all[i]);
      Expect(p.m > 32, "a cluster for few rows", p, d, packing, aligned, all[i]);
    }
    Expect(all[i].family != Family::kHopper || d.architecture == 90, "wgmma outside of sm_90", p, d, packing,
           aligned, all[i]);
    Expect(all[i].rows != Rows::kInput || (aligned && p.k % 8 == 0),
           "16-byte loads from rows that are not aligned", p, d, packing, aligned, all[i]);
    Expect(all[i].rows != Rows::kQuantised || p.activation_quant, "rows are quantised unasked", p, d, packing,
           aligned, all[i]);
    // Kernels count rows and tiles with int.
    constexpr int64_t kMost = std::numeric_limits<int>::max();
    const int64_t rows = (p.m - 1) / all[i].tile_rows + 1, columns = (p.n - 1) / all[i].tile_columns + 1;
    Expect(p.m <= kMost && rows * columns <= kMost, "more tiles than int holds", p, d, packing, aligned,
           all[i]);
    Expect(p.t != DType::kFloat || p.activation_quant || (d.tf32 && d.architecture >= 80),
           "float32 is rounded to TensorFloat32 unasked, or where there is none", p, d, packing, aligned,
           all[i]);
    Expect(packing != Packing::kTf32 || all[i].rows == Rows::kNormalised,
           "floats that were not rounded to TensorFloat32", p, d, packing, aligned, all[i]);
  }
}

// Beyond int; the input of [2^40, 1] would not fit a device, though one of [2^40, 0] does.
constexpr int64_t kManyRows = int64_t{1} << 40;

// The packing may not depend on the rows of a call: weights are packed once.
void CheckPacking(Problem p, const Device& d, Packing packing) {
  for (int64_t m : {int64_t{0}, int64_t{1}, int64_t{16}, int64_t{4096}, kManyRows}) {
    p.m = m;
    Expect(ChoosePacking(p, d) == packing, "the packing depends on the rows", p, d, packing, true, {});
  }
}

// The estimates choose what was fastest where all tiles were timed, or at most 3 % slower: up to 256 rows on
// H100s, more also on H200s.
void CheckMeasured() {
  struct Measured {
    int64_t k, n, m;
    const char* best;
  };
  static constexpr Measured kMeasured[] = {{4096, 12288, 16, "hopper 192x16, parts of K: 2"},
                                           {4096, 12288, 32, "hopper 192x32, parts of K: 2"},
                                           {4096, 12288, 64, "hopper 192x64, parts of K: 2"},
                                           {8192, 10240, 16, "hopper 160x16, parts of K: 2"},
                                           {8192, 10240, 32, "hopper 160x32, parts of K: 2"},
                                           {8192, 10240, 64, "hopper 160x64, parts of K: 2"},
                                           {4096, 12288, 128, "hopper 128x128, clusters of 8x1"},
                                           {4096, 12288, 256, "hopper 192x128, clusters of 1x2"},
                                           {4096, 12288, 512, "hopper 192x256"},
                                           {4096, 12288, 2048, "hopper 192x256"},
                                           {8192, 10240, 512, "hopper 192x256"},
                                           {768, 2304, 1, "stream 32x8"},
                                           {768, 2304, 8, "stream 32x8"},
                                           {1024, 3072, 8, "stream 32x8"},
                                           {768, 2304, 2048, "hopper 192x192"},
                                           {768, 2304, 4096, "hopper 192x192"},
                                           {1024, 3072, 64, "hopper 64x64, clusters of 8x1"},
                                           {1024, 3072, 1536, "hopper 192x192"},
                                           {2048, 3072, 1536, "hopper 192x192"},
                                           {2048, 3072, 512, "hopper 128x128, clusters of 2x2"},
                                           {1024, 3072, 512, "hopper 128x128, clusters of 2x2"},
                                           {2048, 3072, 384, "hopper 128x96, clusters of 2x2"},
                                           {2048, 3072, 1024, "hopper 192x128, clusters of 1x2"},
                                           {4096, 6144, 512, "hopper 192x128, clusters of 1x2"},
                                           {3072, 768, 1, "hopper 64x16, parts of K: 6"},
                                           {3072, 768, 16, "hopper 64x16, parts of K: 6"},
                                           {3072, 768, 64, "hopper 64x64, parts of K: 6"},
                                           {4096, 1024, 16, "hopper 64x16, parts of K: 4"},
                                           {4096, 4096, 64, "hopper 64x64, parts of K: 2"},
                                           {768, 2304, 16, "hopper 64x16, parts of K: 2"},
                                           {2048, 3072, 16, "hopper 128x16, parts of K: 3"},
                                           {2048, 3072, 64, "hopper 64x64, parts of K: 2"},
                                           {2560, 7680, 16, "hopper 128x16, parts of K: 2"},
                                           {3584, 4608, 16, "hopper 192x16, parts of K: 4"},
                                           {4096, 6144, 1, "hopper 128x16, parts of K: 2"},
                                           {4096, 6144, 16, "hopper 128x16, parts of K: 2"},
                                           {4096, 6144, 64, "hopper 64x64, clusters of 8x1"},
                                           {4096, 6144, 128, "hopper 128x64, clusters of 4x2"},
                                           {5120, 7168, 16, "hopper 192x16, parts of K: 3"}};
  static constexpr Measured kMeasuredInt8[] = {{4096, 12288, 1, "stream 48x8"},
                                               {4096, 12288, 16, "hopper 192x16, parts of K: 2"},
                                               {4096, 12288, 32, "hopper 192x32, parts of K: 2"},
                                               {4096, 12288, 128, "hopper 128x128"},
                                               {4096, 12288, 512, "hopper 192x128"},
                                               {4096, 12288, 4096, "hopper 128x256"},
                                               {8192, 10240, 1, "stream 48x8"},
                                               {8192, 10240, 16, "hopper 192x16, parts of K: 2"},
                                               {8192, 10240, 32, "hopper 192x32, parts of K: 2"},
                                               {8192, 10240, 64, "hopper 192x64, parts of K: 2"},
                                               {4096, 6144, 16, "hopper 192x16, parts of K: 3"},
                                               {4096, 6144, 32, "hopper 192x32, parts of K: 3"},
                                               {4096, 6144, 64, "hopper 128x64, parts of K: 2"},
                                               {4096, 6144, 128, "hopper 192x64, parts of K: 2"},
                                               {4096, 4096, 16, "hopper 192x16, parts of K: 4"},
                                               {4096, 4096, 32, "hopper 192x32, parts of K: 4"},
                                               {3584, 4608, 16, "hopper 192x16, parts of K: 4"},
                                               {3584, 4608, 32, "hopper 192x32, parts of K: 4"},
                                               {3584, 4608, 64, "hopper 128x64, parts of K: 3"},
                                               {5120, 7168, 16, "hopper 192x16, parts of K: 3"},
                                               {5120, 7168, 32, "hopper 192x32, parts of K: 3"},
                                               {2048, 3072, 1, "stream 16x8"},
                                               {2048, 3072, 16, "hopper 128x16, parts of K: 4"},
                                               {1024, 3072, 16, "hopper 192x16, parts of K: 4"},
                                               {3072, 768, 16, "hopper 64x16, parts of K: 6"},
                                               {768, 2304, 16, "hopper 64x16, parts of K: 2"},
                                               {768, 2304, 128, "hopper 64x64"}};
  // Those that share statistics, and those that a kernel for them goes before.
  static constexpr Measured kShared[] = {
      {768, 2304, 128, "no"},    {768, 2304, 256, "no"},     {768, 2304, 512, "yes"},
      {768, 2304, 1024, "yes"},  {768, 2304, 2048, "yes"},   {768, 2304, 4096, "yes"},
      {1024, 3072, 512, "yes"},  {1024, 3072, 1024, "yes"},  {1024, 3072, 64, "no"},
      {2048, 3072, 1024, "yes"}, {4096, 6144, 512, "yes"},   {4096, 12288, 128, "no"},
      {4096, 12288, 512, "yes"}, {4096, 12288, 4096, "yes"}, {4096, 12288, 64, "no"},
      {2048, 14336, 64, "no"},   {4096, 14336, 64, "no"},    {8192, 14336, 128, "no"}};
  const auto plan_of = [](const Measured& measured, DType tw = DType::kFloat16) {
    Problem p;
    p.k = measured.k, p.n = measured.n, p.m = measured.m;
    p.t = DType::kFloat16, p.tw = tw;
    p.scale_layout = ScaleLayout::kColumnGroups, p.scale_groups = p.n;
    const int64_t splits[] = {p.n};
    p.splits = splits;
    return MakePlan(p, {90, 132}, tw == DType::kInt8 ? Packing::kInt8 : Packing::kHalf, true);
  };
  const auto expect = [](const Measured& measured, const std::string& found) {
    if (found == measured.best) return;
    ++failures;
    std::printf("FAIL k=%lld n=%lld m=%lld: expected %s, found %s\n", static_cast<long long>(measured.k),
                static_cast<long long>(measured.n), static_cast<long long>(measured.m), measured.best,
                found.c_str());
  };
  const auto tile_of = [](const Plan& plan) {
    const std::string name = ToString(plan);
    return name.substr(0, name.find(", rows input"));
  };
  for (const Measured& measured : kMeasured) expect(measured, tile_of(plan_of(measured)));
  for (const Measured& measured : kMeasuredInt8) expect(measured, tile_of(plan_of(measured, DType::kInt8)));
  for (const Measured& measured : kShared) expect(measured, plan_of(measured).shares ? "yes" : "no");
}

// Plans that no kernel can run are refused, wherever they come from.
void CheckRefused() {
  const Device device{90, 132};
  Problem p;
  p.k = 768, p.n = 1536, p.m = 192;
  p.t = p.tw = DType::kFloat16;
  const int64_t splits[] = {p.n};
  p.splits = splits;
  Plan good;
  good.family = Family::kHopper, good.rows = Rows::kInput, good.tile_columns = 128, good.tile_rows = 64;
  Expect(Serves(good, p, device, Packing::kHalf, true), "a plan is refused", p, device, Packing::kHalf, true,
         good);
  Plan cluster = good;
  cluster.cluster_columns = 4;
  p.m = 64;
  Expect(Serves(cluster, p, device, Packing::kHalf, true), "a cluster is refused", p, device, Packing::kHalf,
         true, cluster);
  // In a part of a device there need not be four multiprocessors together.
  const Device part{90, 40};
  Expect(!Serves(cluster, p, part, Packing::kHalf, true), "a cluster in a part of a device", p, part,
         Packing::kHalf, true, cluster);
  p.m = 192;
  const auto refuse = [&](const Plan& plan, const char* what) {
    Expect(!Serves(plan, p, device, Packing::kHalf, true), what, p, device, Packing::kHalf, true, plan);
  };
  for (const auto& [columns, rows] : std::initializer_list<std::pair<int, int>>{{0, 0},
                                                                                {0, 1},
                                                                                {1, 0},
                                                                                {3, 1},
                                                                                {6, 1},
                                                                                {1, 3},
                                                                                {2, 3},
                                                                                {-1, -1},
                                                                                {-2, -1},
                                                                                {16, 1},
                                                                                {12, 3},
                                                                                {2, 1},
                                                                                {1, 4},
                                                                                {2, 4}}) {
    Plan plan = good;
    plan.cluster_columns = columns, plan.cluster_rows = rows;
    refuse(plan, "a cluster that no kernel has");
  }
  Plan eight = good;
  eight.cluster_columns = 8, eight.tile_columns = 64, p.n = 64 * 8;
  Expect(Serves(eight, p, device, Packing::kHalf, true), "a cluster of eight is refused", p, device,
         Packing::kHalf, true, eight);
  eight.tile_rows = 96;
  refuse(eight, "a cluster whose blocks load parts of swizzles");
  eight.tile_rows = 64, p.m = 32;
  refuse(eight, "a cluster for few rows");
  p.n = 1536, p.m = 192;
  // 3 tiles of rows, and 12 of columns: no whole clusters.
  for (const auto& [columns, rows] : std::initializer_list<std::pair<int, int>>{{2, 2}, {1, 2}}) {
    Plan plan = good;
    plan.cluster_columns = columns, plan.cluster_rows = rows;
    refuse(plan, "a cluster with tiles that are not there");
  }
  for (const auto& [columns, rows] : std::initializer_list<std::pair<int, int>>{{0, 64},
                                                                                {128, 0},
                                                                                {128, 65},
                                                                                {127, 64},
                                                                                {-128, -64},
                                                                                {256, 256},
                                                                                {64, 128},
                                                                                {96, 96},
                                                                                {48, 64},
                                                                                {112, 16},
                                                                                {144, 16},
                                                                                {160, 64},
                                                                                {192, 16}}) {
    Plan plan = good;
    plan.tile_columns = columns, plan.tile_rows = rows;
    refuse(plan, "a tile that no kernel has");
  }
  Plan narrow = good;
  narrow.tile_columns = 96;
  refuse(narrow, "a narrow tile of many rows");
  narrow.tile_rows = 32;
  Expect(Serves(narrow, p, device, Packing::kHalf, true), "a narrow tile is refused", p, device,
         Packing::kHalf, true, narrow);
  Problem widened = p;
  widened.tw = DType::kInt8, widened.scale_layout = ScaleLayout::kColumnGroups, widened.scale_groups = p.n;
  const auto refuse_widened = [&](const Plan& plan, const char* what) {
    Expect(!Serves(plan, widened, device, Packing::kInt8, true), what, widened, device, Packing::kInt8, true,
           plan);
  };
  refuse_widened(narrow, "a narrow tile of int8 weights");
  narrow.cluster_columns = 4;
  refuse(narrow, "a cluster of narrow tiles");
  // 3 tiles of rows, and 12 of columns.
  Plan parts = good;
  parts.k_parts = 3;
  Expect(Serves(parts, p, device, Packing::kHalf, true), "parts of K are refused", p, device, Packing::kHalf,
         true, parts);
  refuse_widened(parts, "parts of K of int8 weights and many rows");
  Problem few_widened = widened;
  few_widened.m = 64;
  Expect(Serves(parts, few_widened, device, Packing::kInt8, true), "parts of K of int8 weights are refused",
         few_widened, device, Packing::kInt8, true, parts);
  Plan wide = parts;
  wide.tile_columns = 160, wide.tile_rows = 64;
  Problem few_rows = p;
  few_rows.m = 64;
  Expect(Serves(wide, few_rows, device, Packing::kHalf, true), "a wide tile with parts of K is refused",
         few_rows, device, Packing::kHalf, true, wide);
  Expect(!Serves(wide, few_widened, device, Packing::kInt8, true),
         "a narrow tile of int8 weights and parts of K", few_widened, device, Packing::kInt8, true, wide);
  wide.tile_columns = 192, wide.k_parts = 4;  // whose sums leave no room
  Expect(!Serves(wide, few_rows, device, Packing::kHalf, true), "parts of K that no kernel has", few_rows,
         device, Packing::kHalf, true, wide);
  Expect(!Serves(parts, p, part, Packing::kHalf, true), "parts of K in a part of a device", p, part,
         Packing::kHalf, true, parts);
  for (const int k_parts : {-2, 0, 4, 5, 8}) {  // 4: more blocks than start at once
    parts.k_parts = k_parts;
    refuse(parts, "parts of K that no kernel has, or too many");
  }
  parts.k_parts = 2;
  p.k = 192;
  refuse(parts, "parts of K with one piece");
  p.k = 768;
  parts.cluster_rows = 2;
  refuse(parts, "parts of K and a cluster");
  parts.cluster_rows = 1, parts.tile_rows = 128, parts.shares = true;
  refuse(parts, "parts of K and shared statistics");
  Plan few = good;
  few.tile_rows = 32, few.shares = true;
  refuse(few, "shared statistics of tiles that take them themselves");
  Plan plain = good;
  plain.family = Family::kTile, plain.shares = true;
  refuse(plain, "shared statistics where no kernel has them");
}

// float32 is rounded to TensorFloat32 where the device has it and the caller does not forbid it.
void CheckTf32() {
  struct Expected {
    Device device;
    int64_t m;
    const char* plan;
  };
  static constexpr Expected kExpected[] = {{{90, 132}, 1, "stream 96x1, rows normalised"},
                                           {{90, 132}, 4096, "hopper 128x256, rows normalised"},
                                           {{80, 108}, 4096, "tile 128x128, rows normalised"},
                                           {{75, 40}, 4096, "generic, rows float"},
                                           {{90, 132, false}, 4096, "generic, rows float"}};
  for (const Expected& expected : kExpected) {
    Problem p;
    p.k = 4096, p.n = 12288, p.m = expected.m;
    const int64_t splits[] = {p.n};
    p.splits = splits;
    const Packing packing = ChoosePacking(p, expected.device);
    const Plan plan = MakePlan(p, expected.device, packing, true);
    Expect(ToString(plan) == expected.plan, expected.plan, p, expected.device, packing, true, plan);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(std::stoul(argv[1])) : std::random_device{}();
  std::printf("seed %u (pass it as the argument to repeat)\n", seed);
  std::mt19937 random(seed);
  const std::vector<Device> devices = {{70, 80},   {75, 40},         {80, 108},       {86, 28},
                                       {89, 128},  {90, 132},        {90, 1},         {100, 148},
                                       {120, 170}, {80, 108, false}, {90, 132, false}};
  const std::vector<int64_t> sizes = {0,   1,   2,    7,    8,    9,     15,    16,      17,       31,
                                      63,  64,  65,   96,   127,  128,   129,   200,     255,      256,
                                      257, 768, 1024, 4096, 8192, 12288, 50257, 1 << 24, kManyRows};
  const auto pick = [&](const auto& from) { return from[random() % from.size()]; };
  for (const Device& device : devices) {
    for (int64_t m : sizes) {
      for (int i = 0; i < 400; ++i) {
        Problem p;
        p.m = m, p.k = pick(sizes), p.n = pick(sizes);
        p.t = static_cast<DType>(random() % 3);
        p.tw = static_cast<DType>(random() % 4);
        p.norm = static_cast<NormType>(random() % 3);
        p.transposed = random() % 2;
        if (p.tw == DType::kInt8) {
          p.activation_quant = random() % 2;
          p.has_zero_point = random() % 2;
          p.scale_layout = random() % 3 == 0 ? ScaleLayout::kBlocks : ScaleLayout::kColumnGroups;
          p.scale_groups = random() % 2 ? 1 : p.n;
          p.scale_block = p.k;
        }
        std::vector<int64_t> splits(random() % 4 == 0 ? 9 : 1 + random() % 3);
        int64_t left = p.n;
        for (int64_t& width : splits) left -= width = left / 2;
        splits.back() += left;
        p.splits = splits.data(), p.num_splits = static_cast<int64_t>(splits.size());
        const Packing packing = ChoosePacking(p, device);
        CheckPacking(p, device, packing);
        for (bool aligned : {false, true}) {
          CheckPlans(p, device, packing, aligned);
          CheckPlans(p, device, Packing::kNone, aligned);
        }
      }
    }
  }
  CheckMeasured();
  CheckRefused();
  CheckTf32();
  const Plan generic;
  if (ToString(generic).find("generic") == std::string::npos)
    ++failures, std::printf("FAIL generic has no name\n");
  std::printf("%lld problems, %lld plans, %d failures\n", problems, plans, failures);
  return failures == 0 ? 0 : 1;
}
