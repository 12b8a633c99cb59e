// The CPU kernels against a float64 reference written as plainly as the formula: every instruction set that
// the machine has, fresh random inputs (the seed is printed), poisoned outputs. Exits 1 if any element is out
// of bounds.
//
//   qkvgemm_cpu_test [SEED [ISA [SHARE]]]    ISA: one alone; SHARE 10: one case in ten, by chance
//
// QKVGEMM_ISA forces an instruction set here as it does in the library: what is chosen is printed and tested
// alone, and one that the processor lacks is refused with exit code 2.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "ops/cpu/plan.h"
#include "test/cpu/report.h"
#include "test/kernels/check.h"
#include "test/kernels/cpu_arithmetic.h"
#include "test/kernels/pool.h"

// Counted, for a call must not allocate. Not inlined: g++ 12 warns where it inlines one of a pair and not the
// other.
static std::atomic<int64_t> allocations{0};
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++allocations;
  if (void* block = std::malloc(bytes == 0 ? 1 : bytes)) return block;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* block) noexcept { std::free(block); }
[[gnu::noinline]] void operator delete(void* block, size_t) noexcept { std::free(block); }

using namespace qkvgemm;
using namespace qkvgemm::cpu;
using namespace qkvgemm::support;

namespace {

int64_t elements = 0;
unsigned share = 1;

// Is this case one of those that a share of them leaves out?
bool LeftOut(std::mt19937& random) { return share > 1 && random() % share != 0; }

// Names a case so that a failure can be reproduced.
std::string Describe(const Case& c, Isa isa, bool packed, int threads) {
  return std::string(IsaName(isa)) + " " + Describe(c) + (packed ? " packed" : " unpacked") +
         " threads=" + std::to_string(threads);
}

// Runs one case and checks every element of every output; returns the bytes of the outputs.
// `exact_rows`: they have no more digits than products of bfloat16 take.
std::vector<char> RunAndCheck(Case& c, Isa isa, bool use_packed, int threads, const Choice& choice = {},
                              bool exact_rows = false) {
  ++cases;
  const std::string name = Describe(c, isa, use_packed, threads) + " " + ToString(choice);
  ThreadedPool pool(threads);
  c.Poison();
  const Operands o = c.GetOperands();
  Buffer packed(PackedBytes(c.p, isa)), scratch(ScratchBytes(c.p, isa, threads, use_packed, choice));
  if (use_packed) Pack(c.p, o, isa, pool.pool, packed.Data());
  const int64_t before = allocations;
  Run(c.p, o, use_packed ? packed.Data() : nullptr, isa, pool.pool, scratch.Data(), choice);
  if (threads == 1 && allocations != before)  // else the pool's threads may count
    Fail(name + ": allocated " + std::to_string(allocations - before) + " times");

  Arithmetic arithmetic = ArithmeticOf(MakePlan(c.p, isa, threads, choice));
  if (exact_rows) arithmetic.operand = 0;
  CheckOutputs(c, o.norm != nullptr, arithmetic, name, &elements, Fail);
  return c.OutputBytes();
}

// Are products added up as one thread does it? Other blocks of rows have other tiles, whose sums are in
// another order, and parts of K have sums of their own.
bool SumsInOrder(const Case& c, Isa isa, int threads, const Choice& choice = {}) {
  return choice.row_blocks == 1 && MakePlan(c.p, isa, threads, choice).spread.depth_parts == 1;
}

void RunAll(Case& c, Isa isa, std::mt19937& random) {
  if (LeftOut(random)) return;
  c.Fill(random);
  const auto first = RunAndCheck(c, isa, true, 1);
  if (RunAndCheck(c, isa, true, 1) != first) Fail(Describe(c, isa, true, 1) + ": a second run differs");
  const auto threaded = RunAndCheck(c, isa, false, 3);
  if (SumsInOrder(c, isa, 3) && threaded != first)
    Fail(Describe(c, isa, false, 3) + ": unpacked or threaded differs");
  const std::vector<Choice> choices = Choices(c.p, isa, 3);
  const Choice choice = choices[random() % choices.size()];
  const auto chosen = RunAndCheck(c, isa, true, 3, choice);
  if (SumsInOrder(c, isa, 3, choice) && chosen != first)
    Fail(Describe(c, isa, true, 3) + ": differs with " + ToString(choice));
}

// Every way to spread a pass over threads, more of them than it has panels: parts of rows give the same bits,
// and parts of K the same ones in every run.
void TestSpreads(Isa isa, std::mt19937& random) {
  constexpr int kThreads = 16;
  const int mr = TileOf(isa).mr;
  for (DType tw : {DType::kFloat, DType::kFloat16, DType::kBFloat16, DType::kInt8})
    for (int form = 0; form < (tw == DType::kInt8 ? 6 : 1); ++form)
      for (int64_t m : {1, 4, mr / 3, 2 * mr, kMatrixRows + 5})
        for (int64_t k : {1024 + 40, 2048}) {
          Case c;
          c.p.m = m, c.p.k = k, c.p.n = 70;
          c.p.tw = tw, c.p.activation_quant = form % 2 == 1;
          if (tw == DType::kInt8) {
            c.p.scale_layout = form < 4 ? ScaleLayout::kColumnGroups : ScaleLayout::kBlocks;
            c.p.scale_groups = c.p.n, c.p.scale_block = k % 64 == 0 ? 64 : 8;
            c.p.has_zero_point = form >= 2;
          }
          c.splits = Split(c.p.n, 2);
          if (LeftOut(random)) continue;
          c.Fill(random);
          const auto first = RunAndCheck(c, isa, true, 1);
          const Choice choices[] = {
              {}, {.row_parts = 2}, {.row_parts = 3}, {.depth_parts = 2}, {.depth_parts = 7}};
          for (const Choice& choice : choices) {
            const auto once = RunAndCheck(c, isa, true, kThreads, choice);
            if (RunAndCheck(c, isa, true, kThreads, choice) != once)
              Fail(Describe(c, isa, true, kThreads) + ": a second run differs with " + ToString(choice));
            if (SumsInOrder(c, isa, kThreads, choice) && once != first)
              Fail(Describe(c, isa, true, kThreads) + ": differs with " + ToString(choice));
          }
        }
}

// Shapes around every tile, lane and block that a plan cuts: rows up to which products are exact, vector and
// matrix tiles, columns of a panel, k of a lane, of a K block and of a matrix register.
void TestShapes(Isa isa, std::mt19937& random) {
  const Tile tile = TileOf(isa);
  const std::vector<int64_t> ms = {
      0, 1, 2, 3, 4, 5, tile.mr - 1, tile.mr, tile.mr + 1, 2 * tile.mr + 1, kMatrixRows - 1, kMatrixRows + 1,
      37};
  const std::vector<int64_t> ns = {1, 3, tile.nr - 1, tile.nr, tile.nr + 1, 3 * tile.nr + 5};
  const std::vector<int64_t> ks = {
      0, 1, 2, 7, 33, 64, 66, kKBlock - 1, kKBlock, kKBlock + 1, 2 * kKBlock + 19};
  int64_t turn = 0;
  for (int64_t m : ms)
    for (int64_t n : ns)
      for (int64_t k : ks) {
        Case c;
        c.p.m = m, c.p.n = n, c.p.k = k;
        c.p.norm = static_cast<NormType>((m + n + k) % 3);
        c.p.tw = static_cast<DType>(turn++ % 4);
        if (c.p.tw == DType::kInt8) {
          c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = n;
          c.p.has_zero_point = turn % 3 == 0;
          c.p.activation_quant = turn % 8 < 4;
        }
        c.splits = Split(n, static_cast<int>(k % 3) + 1);
        c.emit_norm = k % 2 == 0;
        c.p.transposed = n % 2 == 0;
        RunAll(c, isa, random);
      }
}

void TestTypes(Isa isa, std::mt19937& random) {
  const DType floats[] = {DType::kFloat, DType::kFloat16, DType::kBFloat16};
  for (DType t : floats)
    for (int tw = 0; tw < 4; ++tw)
      for (int norm = 0; norm < 3; ++norm)
        for (int64_t m : {1, 5, 31})
          for (int variant = 0; variant < 4; ++variant) {
            Case c;
            c.p.m = m, c.p.k = 96, c.p.n = 72;
            c.p.t = t;
            c.p.tw = static_cast<DType>(tw);
            c.p.norm = static_cast<NormType>(norm);
            c.p.gamma_type = variant & 1 ? t : DType::kFloat;
            c.p.beta_type = variant & 2 ? t : DType::kFloat;
            c.p.bias_type = variant & 1 ? t : DType::kFloat;
            c.gamma = variant != 3, c.beta = variant != 2, c.bias = variant != 1;
            c.emit_norm = variant == 0;
            c.p.transposed = variant == 2;
            c.splits = Split(c.p.n, variant % 3 + 1);
            if (c.p.tw == DType::kInt8)
              c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = c.p.n;
            RunAll(c, isa, random);
          }
}

void TestInt8(Isa isa, std::mt19937& random) {
  for (int64_t m : {1, 4, 40})
    for (int64_t n : {40, 72})
      for (bool zero_point : {false, true})
        for (bool quant : {false, true})
          for (DType scale_type : {DType::kFloat, DType::kFloat16})
            for (int64_t layout : {1, 2, 4, 0, -1, -6, -8, -15, -32, -64, -128, -960,
                                   -1920}) {  // groups; 0: per column; negative: blocks along K
              if (layout < -100 && (m == 4 || n != 40 || scale_type != DType::kFloat)) continue;  // slow
              Case c;
              c.p.m = m, c.p.n = n, c.p.k = layout < -100 ? 1920 : layout == -15 ? 75 : 384;
              c.p.tw = DType::kInt8;
              c.p.has_zero_point = zero_point;
              c.p.activation_quant = quant;
              c.p.scale_type = scale_type;
              c.p.norm = m == 4 ? NormType::kRmsNorm : NormType::kLayerNorm;
              c.p.scale_layout = layout < 0 ? ScaleLayout::kBlocks : ScaleLayout::kColumnGroups;
              if (layout < 0)
                c.p.scale_block = -layout;
              else
                c.p.scale_groups = layout == 0 ? n : layout;
              c.p.transposed = n == 72;
              c.splits = Split(n, 3);
              RunAll(c, isa, random);
            }
}

// Rows of few bits, whose values fall on the middle between two of int8.
void TestTies(Isa isa, std::mt19937& random) {
  for (DType t : {DType::kFloat, DType::kFloat16, DType::kBFloat16})
    for (int64_t m : {3, 40}) {
      Case c;
      c.p.m = m, c.p.k = 1000, c.p.n = 40;
      c.p.t = t, c.p.tw = DType::kInt8, c.p.activation_quant = true;
      c.p.norm = NormType::kRmsNorm, c.gamma = false;
      c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = 1;
      c.values = Values::kTies;
      c.splits = {40};
      RunAll(c, isa, random);
    }
}

// More products than one int32 sums up, and the largest that there are: 127 * 255 each.
void TestDeepInt8(Isa isa, std::mt19937& random) {
  for (bool quant : {false, true})
    for (int64_t m : {2, 9}) {
      Case c;
      c.p.m = m, c.p.k = 2 * kMaxInt8Depth + 70, c.p.n = 3;
      c.p.tw = DType::kInt8, c.p.has_zero_point = true, c.p.activation_quant = quant;
      c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = 3;
      c.splits = {3};
      RunAll(c, isa, random);
    }
  for (int64_t block : {int64_t{0}, kMaxInt8Depth, 2 * kMaxInt8Depth})
    for (int sign : {1, -1}) {
      Case c;
      c.p.m = 9, c.p.k = 2 * kMaxInt8Depth, c.p.n = 3;
      c.p.norm = NormType::kNone;
      c.p.tw = DType::kInt8, c.p.has_zero_point = true, c.p.activation_quant = true;
      c.p.scale_layout = block == 0 ? ScaleLayout::kColumnGroups : ScaleLayout::kBlocks;
      c.p.scale_groups = 3, c.p.scale_block = block;
      c.splits = {3};
      if (LeftOut(random)) continue;
      c.Fill(random);
      // Equal products in float round alike, up to K roundings of the sum; the bound is for others.
      if (MakePlan(c.p, isa, 1).operand != Operand::kInt8) continue;
      for (int64_t i = 0; i < c.x.Count(); ++i) c.x.Set(i, 1.0);
      for (int64_t i = 0; i < c.w.Count(); ++i) c.w.Set(i, sign > 0 ? 127 : -128);
      for (int64_t i = 0; i < c.z.Count(); ++i) c.z.Set(i, sign > 0 ? -128 : 127);
      RunAndCheck(c, isa, true, 1);
    }
}

// Where rows are bfloat16 already, products are exact, and what is left is the rounding of sums.
void TestBFloat16Sums(Isa isa, std::mt19937& random) {
  for (int64_t k : {3, 64, 1000, 4096})
    for (int64_t m : {5, 9, kMatrixRows + 1}) {
      Case c;
      c.p.m = m, c.p.k = k, c.p.n = 20;
      c.p.norm = NormType::kNone;
      c.p.tw = DType::kBFloat16;
      c.splits = {20};
      if (LeftOut(random)) continue;
      c.Fill(random);
      for (int64_t i = 0; i < c.x.Count(); ++i)
        c.x.Set(i, BFloat16ToFloat(FloatToBFloat16(static_cast<float>(c.x.Get(i)))));
      RunAndCheck(c, isa, true, 1, {}, true);
    }
}

// A row that is not finite gives nothing that is, and disturbs no other.
void TestNotFinite(Isa isa, std::mt19937& random) {
  for (double value : {static_cast<double>(NAN), static_cast<double>(INFINITY)})
    for (int tw = 0; tw < 4; ++tw)
      for (bool quant : {false, true})
        for (int norm = 0; norm < 3; ++norm)
          for (int64_t m : {1, 6, 40}) {
            Case c;
            c.p.m = m, c.p.k = 70, c.p.n = 40;
            c.p.tw = static_cast<DType>(tw), c.p.norm = static_cast<NormType>(norm);
            if (c.p.tw == DType::kInt8) c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = 1;
            c.p.activation_quant = quant && c.p.tw == DType::kInt8;
            c.splits = {40};
            if (LeftOut(random)) continue;
            c.Fill(random);
            const auto before = RunAndCheck(c, isa, true, 1);
            const int64_t bad = m / 2;
            c.x.Set(bad * c.p.k + static_cast<int64_t>(random() % 70), value);
            ThreadedPool pool(1);
            Buffer scratch(ScratchBytes(c.p, isa, 1, false));
            c.Poison();
            Run(c.p, c.GetOperands(), nullptr, isa, pool.pool, scratch.Data());
            const auto after = c.OutputBytes();
            const std::string name = Describe(c, isa, false, 1);
            for (int64_t i = 0; i < c.p.n; ++i, ++elements)
              if (std::isfinite(c.y[0].Get(bad * c.p.n + i)))
                Fail(name + ": a row with " + std::to_string(value) + " gives a number");
            const auto row = static_cast<ptrdiff_t>(c.p.n * static_cast<int64_t>(SizeOf(c.p.t)));
            if (!std::equal(before.begin(), before.begin() + bad * row, after.begin()) ||
                !std::equal(before.begin() + (bad + 1) * row, before.end(), after.begin() + (bad + 1) * row))
              Fail(name + ": a row with " + std::to_string(value) + " disturbs another");
          }
}

void TestZeroRows(Isa isa, std::mt19937& random) {
  for (int norm = 0; norm < 2; ++norm)
    for (float epsilon : {0.0f, 1e-12f, 1e-5f}) {
      Case c;
      c.p.m = 9, c.p.k = 40, c.p.n = 24;
      c.p.norm = static_cast<NormType>(norm);
      c.p.epsilon = epsilon;
      c.emit_norm = true;
      c.splits = {24};
      RunAll(c, isa, random);
    }
}

// Values whose squares overflow float32: what is normalised has no element beyond sqrt(K), or is no number.
void TestOverflow(Isa isa, std::mt19937& random) {
  for (double magnitude : {1e20, 1e25, 1e30, 1e34, 1e37, 3e38})
    for (int norm = 0; norm < 2; ++norm) {
      Case c;
      c.p.m = 2, c.p.k = 300, c.p.n = 8;
      c.p.norm = static_cast<NormType>(norm);
      c.gamma = c.beta = false, c.emit_norm = true;
      c.splits = {8};
      c.Fill(random);
      std::uniform_real_distribution<double> uniform(-1.0, 1.0);
      for (int64_t i = 0; i < 2 * 300; ++i) c.x.Set(i, magnitude * uniform(random));
      Buffer scratch(ScratchBytes(c.p, isa, 1, false));
      ThreadedPool pool(1);
      Run(c.p, c.GetOperands(), nullptr, isa, pool.pool, scratch.Data());
      ++cases;
      for (int64_t i = 0; i < 2 * 300; ++i, ++elements)
        if (std::fabs(c.norm.Get(i)) > std::sqrt(300.0))
          Fail(std::string(IsaName(isa)) + " overflow at " + std::to_string(magnitude) + ": norm[" +
               std::to_string(i) + "] = " + std::to_string(c.norm.Get(i)));
    }
}

// Several row tiles, each of which comes back to its sums for every block of K, of the longest that a plan
// has.
void TestDeepTiles(Isa isa, std::mt19937& random) {
  for (DType tw : {DType::kFloat, DType::kFloat16, DType::kBFloat16, DType::kInt8})
    for (bool quant : {false, true}) {
      if (quant && tw != DType::kInt8) continue;
      Case c;
      c.p.m = 2 * kMatrixRows + 5, c.p.k = 4 * kMatrixKBlock + 66, c.p.n = 35;
      c.p.tw = tw, c.p.activation_quant = quant;
      if (tw == DType::kInt8) c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = c.p.n;
      c.splits = Split(c.p.n, 2);
      RunAll(c, isa, random);
    }
}

void TestLargeBlocks(Isa isa, std::mt19937& random) {
  Case c;  // more rows than one pass takes
  c.p.m = kMaxRowBlock + 3, c.p.k = 24, c.p.n = 40;
  c.splits = Split(40, 3);
  c.emit_norm = true;
  RunAll(c, isa, random);
}

// All 65536 values: to float and back through every instruction set's conversion, and ties.
void TestConversions() {
  for (uint32_t h = 0; h < 65536; ++h) {
    const auto bits = static_cast<uint16_t>(h);
    const float f16 = Float16ToFloat(bits), bf16 = BFloat16ToFloat(bits);
    if (f16 == f16 && FloatToFloat16(f16) != bits)
      Fail("float16 " + std::to_string(h) + " does not round-trip");
    if (bf16 == bf16 && FloatToBFloat16(bf16) != bits)
      Fail("bfloat16 " + std::to_string(h) + " does not round-trip");
    if (f16 != f16 && Float16ToFloat(FloatToFloat16(f16)) == Float16ToFloat(FloatToFloat16(f16)))
      Fail("float16 NaN is lost");
    if (bf16 != bf16 && BFloat16ToFloat(FloatToBFloat16(bf16)) == BFloat16ToFloat(FloatToBFloat16(bf16)))
      Fail("bfloat16 NaN is lost");
  }
  cases += 65536;
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : std::random_device{}();
  std::string_view only = argc > 2 ? argv[2] : "";
  if (argc > 3) share = static_cast<unsigned>(std::max(1, std::atoi(argv[3])));
  const char* forced = std::getenv("QKVGEMM_ISA");
  Isa chosen;
  std::string error;
  if (!SelectIsa(forced, &chosen, &error)) {
    std::fprintf(stderr, "%s\n", error.c_str());
    return 2;
  }
  if (forced != nullptr && *forced != '\0') only = IsaName(chosen);
  std::printf("chosen: %s\nseed %u (pass it as the argument to repeat)\n", IsaName(chosen), seed);
  TestConversions();
  TestPlan();
  for (Isa isa : kAllIsas) {
    if (!only.empty() && only != IsaName(isa)) continue;
    if (!IsaSupported(isa)) {
      std::printf("%s: this processor lacks it, not tested\n", IsaName(isa));
      continue;
    }
    std::mt19937 random(seed);
    TestShapes(isa, random);
    TestTypes(isa, random);
    TestInt8(isa, random);
    TestTies(isa, random);
    TestDeepInt8(isa, random);
    TestBFloat16Sums(isa, random);
    TestNotFinite(isa, random);
    TestZeroRows(isa, random);
    TestOverflow(isa, random);
    TestDeepTiles(isa, random);
    TestSpreads(isa, random);
    TestLargeBlocks(isa, random);
    std::printf("%s: %lld cases, %lld elements so far, %d failures\n", IsaName(isa),
                static_cast<long long>(cases), static_cast<long long>(elements), failures);
  }
  return failures == 0 ? 0 : 1;
}
