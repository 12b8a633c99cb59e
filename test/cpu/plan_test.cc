// Plans of the CPU kernels, and the choices that may be timed.
#include "ops/cpu/plan.h"

#include <string>

#include "test/cpu/report.h"

using namespace qkvgemm;
using namespace qkvgemm::cpu;

namespace {

// What products are of, by instruction set, weights and rows.
void TestOperands() {
  struct Expected {
    Isa isa;
    DType tw;
    bool quant;
    int64_t block, m;
    Operand operand;
    int digits;
    bool matrix, widen;
    int group;
  };
  constexpr Operand kF = Operand::kFloat, kB = Operand::kBFloat16, kI = Operand::kInt8;
  const Expected table[] = {
      {Isa::kAvx512, DType::kInt8, false, 0, 512, kF, 1, false, true, 1},
      {Isa::kAvx512, DType::kInt8, true, 0, 1, kF, 1, false, false, 1},
      {Isa::kAvxVnni, DType::kInt8, false, 0, 512, kI, 2, false, false, 4},
      {Isa::kAvx512Vnni, DType::kInt8, true, 0, 512, kI, 1, false, false, 4},
      {Isa::kAvx512Vnni, DType::kBFloat16, false, 0, 512, kF, 1, false, true, 1},
      {Isa::kAvx512Bf16, DType::kBFloat16, false, 0, 4, kF, 1, false, false, 2},
      {Isa::kAvx512Bf16, DType::kBFloat16, false, 0, 5, kB, 1, false, false, 2},
      {Isa::kAvx512Bf16, DType::kInt8, false, 0, 4, kI, 3, false, false, 4},
      {Isa::kAvx512Bf16, DType::kInt8, false, 0, 5, kI, 2, false, false, 4},
      {Isa::kAvx512Bf16, DType::kInt8, false, 6, 512, kF, 1, false, true, 1},
      {Isa::kAvx512Bf16, DType::kFloat16, false, 0, 512, kF, 1, false, true, 1},
      {Isa::kNeonDot, DType::kInt8, false, 12, 512, kI, 2, false, false, 4},
      {Isa::kNeonI8mm, DType::kBFloat16, false, 0, 512, kF, 1, false, true, 1},
      {Isa::kNeonI8mm, DType::kInt8, true, 0, 1, kI, 1, true, false, 8},
      {Isa::kNeonI8mm, DType::kInt8, false, 8, 512, kI, 2, true, false, 8},
      {Isa::kNeonI8mm, DType::kInt8, false, 12, 512, kF, 1, false, true, 1},
      {Isa::kNeonBf16, DType::kBFloat16, false, 0, 4, kF, 1, false, false, 4},
      {Isa::kNeonBf16, DType::kBFloat16, false, 0, 5, kB, 1, true, false, 4},
      {Isa::kNeonBf16, DType::kInt8, false, 0, 4, kI, 3, true, false, 8},
      {Isa::kAmx, DType::kBFloat16, false, 0, 4, kF, 1, false, false, 2},
      {Isa::kAmx, DType::kBFloat16, false, 0, 5, kB, 1, true, false, 2},
      {Isa::kAmx, DType::kInt8, true, 0, 8, kI, 1, false, false, 4},
      {Isa::kAmx, DType::kInt8, true, 0, 9, kI, 1, true, false, 4},
      {Isa::kAmx, DType::kInt8, false, 64, 512, kI, 2, true, false, 4},
      {Isa::kAmx, DType::kInt8, true, 32, 512, kI, 1, false, false, 4},
      {Isa::kAmx, DType::kInt8, true, 64, 512, kI, 1, true, false, 4},
  };
  for (const Expected& e : table) {
    Problem p;
    p.m = e.m, p.k = 384, p.n = 768, p.tw = e.tw, p.activation_quant = e.quant, p.scale_block = e.block;
    if (e.tw == DType::kInt8)
      p.scale_layout = e.block == 0 ? ScaleLayout::kColumnGroups : ScaleLayout::kBlocks;
    const Plan plan = MakePlan(p, e.isa, 2);
    if (plan.operand != e.operand || plan.digits != e.digits || (plan.run > 1) != e.matrix ||
        plan.widen != e.widen || FormatOf(p, e.isa).group != e.group)
      Fail(std::string("operands of ") + IsaName(e.isa) + ", " + std::to_string(e.m) +
           " rows: " + ToString(plan));
  }
  Problem deep;  // rows on matrix registers are to stay in the second cache level
  deep.m = 2048, deep.k = 8192, deep.n = 768, deep.tw = DType::kBFloat16;
  const Plan plan = MakePlan(deep, Isa::kAmx, 2);
  if (plan.block_rows > 64 || plan.row_blocks * plan.block_rows < deep.m)
    Fail("plan for deep rows on matrix registers: " + ToString(plan));
}

// How a pass is cut for its threads.
void TestSpread() {
  struct Expected {
    int64_t m, k, n;
    int threads;
    Spread spread;
  };
  const Expected table[] = {
      // Panels enough: tasks of several, evenly.
      {1, 768, 2304, 2, {8, 1, 1}},
      {512, 768, 2304, 2, {8, 1, 1}},
      {2048, 4096, 12288, 16, {64, 1, 1}},
      {1, 4096, 12288, 16, {64, 1, 1}},
      // 72 panels are 4.5 for each of 16 threads.
      {512, 768, 2304, 16, {72, 2, 1}},
      // Fewer panels than threads: of rows, or of K where there is one row tile.
      {512, 4096, 256, 16, {8, 2, 1}},
      {1, 4096, 256, 16, {8, 1, 2}},
      {4, 16384, 512, 64, {16, 1, 4}},
      {14, 4096, 96, 2, {3, 1, 2}},
      // As many as threads, or nothing that could be cut.
      {1, 4096, 512, 16, {16, 1, 1}},
      {1, 64, 32768, 16, {64, 1, 1}},
      {1, 768, 256, 2, {8, 1, 1}},
      {1, 768, 8, 2, {1, 1, 1}},  // one panel is not worth waking a thread for a part of K
      {1, 64, 32, 16, {1, 1, 1}},
      {512, 4096, 256, 1, {1, 1, 1}},
  };
  for (const Expected& e : table) {
    Problem p;
    p.m = e.m, p.k = e.k, p.n = e.n;
    const Plan plan = MakePlan(p, Isa::kAvx512, e.threads);
    if (plan.spread != e.spread)
      Fail("spread of m=" + std::to_string(e.m) + " k=" + std::to_string(e.k) + " n=" + std::to_string(e.n) +
           " over " + std::to_string(e.threads) + " threads: " + ToString(plan));
  }
  // Blocks of scales and int32 sums stay whole.
  Problem p;
  p.m = 1, p.k = 4096, p.n = 64, p.tw = DType::kInt8, p.scale_layout = ScaleLayout::kBlocks,
  p.scale_block = 1024;
  const Plan blocks = MakePlan(p, Isa::kAvx512Vnni, 64);
  if (blocks.depth_unit != 1024 || blocks.spread.depth_parts > 4)
    Fail("blocks of scales: " + ToString(blocks));
  p.scale_layout = ScaleLayout::kColumnGroups, p.k = 2 * kMaxInt8Depth + 64;
  const Plan deep = MakePlan(p, Isa::kAvx512Vnni, 64);
  if (deep.depth_unit != kMaxInt8Depth || deep.spread.depth_parts > 3) Fail("int32 sums: " + ToString(deep));
}

}  // namespace

void TestPlan() {
  Problem p;
  p.m = 1, p.k = 4096, p.n = 12288;
  const Plan one = MakePlan(p, Isa::kAvx512, 2);
  if (one.widen || one.spread.Tasks() < 2 || one.row_blocks != 1) Fail("plan for one row: " + ToString(one));
  p.m = kMaxRowBlock + 1;
  const Plan two = MakePlan(p, Isa::kAvx512, 2);
  if (two.widen || two.operand != Operand::kFloat || two.row_blocks != 2 || two.block_rows > kMaxRowBlock)
    Fail("plan for many rows: " + ToString(two));
  for (const Choice& choice : Choices(p, Isa::kAvx512, 2)) {
    if (ParseChoice(ToString(choice)) != choice) Fail("choice " + ToString(choice) + " is not read back");
    const Plan plan = MakePlan(p, Isa::kAvx512, 2, choice);
    if (plan.block_rows > kMaxRowBlock || plan.row_blocks * plan.block_rows < p.m)
      Fail("plan for " + ToString(choice) + ": " + ToString(plan));
  }
  if (Choices(p, Isa::kAvx512, 2).size() < 5 || Choices(p, Isa::kAvx512, 2).front() != Choice{})
    Fail("choices for many rows");
  if (ParseChoice("") || ParseChoice("tasks 3 a thread, row blocks x1, norm by size"))
    Fail("a choice that is none");
  TestOperands();
  TestSpread();
  p.m = 1, p.k = 8, p.n = 8;
  if (Choices(p, Isa::kAvx512, 16).size() != 1) Fail("a tiny problem leaves no choice");
  if (MakePlan(p, Isa::kAvx512, 16).spread.Tasks() != 1) Fail("a tiny problem is one task");
  for (int64_t rows : {1, 13, 14, 15, 27, 640}) {
    const RowTiles tiles(rows, 14);
    int64_t at = 0;
    for (int64_t t = 0; t < tiles.count; ++t) {
      const int64_t count = tiles.Begin(t + 1) - tiles.Begin(t);
      if (tiles.Begin(t) != at || count < 1 || count > 14) Fail("row tiles of " + std::to_string(rows));
      at += count;
    }
    if (at != rows) Fail("row tiles of " + std::to_string(rows) + " do not cover them");
  }
  std::string error;
  Isa isa;
  if (SelectIsa("sse9", &isa, &error) || error.find("sse9") == std::string::npos)
    Fail("an unknown instruction set is accepted");
  if (!SelectIsa("scalar", &isa, &error) || isa != Isa::kScalar) Fail("scalar cannot be forced");
  ++cases;
}
