// The CPU kernels against a float64 reference written as plainly as the formula: every instruction set that
// the machine has, fresh random inputs (the seed is printed), poisoned outputs. Exits 1 if any element is out
// of bounds.
#include <cstdio>
#include <cstdlib>
#include <new>
#include <string>

#include "ops/cpu/plan.h"
#include "test/cpu/support.h"

// Counted, for a call must not allocate.
static std::atomic<int64_t> allocations{0};
void* operator new(size_t bytes) {
  ++allocations;
  if (void* block = std::malloc(bytes == 0 ? 1 : bytes)) return block;
  throw std::bad_alloc();
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, size_t) noexcept { std::free(block); }

using namespace qkvgemm;
using namespace qkvgemm::cpu;
using namespace qkvgemm::cpu::support;

namespace {

int failures = 0;
int64_t cases = 0, elements = 0;

double RoundingOf(DType t) { return t == DType::kFloat ? 0x1p-24 : t == DType::kFloat16 ? 0x1p-11 : 0x1p-8; }
double SmallestOf(DType t) { return t == DType::kFloat16 ? 0x1p-25 : 0x1p-126; }

// Names a case so that a failure can be reproduced.
std::string Describe(const Case& c, Isa isa, bool packed, int threads) {
  auto n = [](auto v) { return std::to_string(static_cast<long long>(v)); };
  return std::string(IsaName(isa)) + " m=" + n(c.p.m) + " k=" + n(c.p.k) + " n=" + n(c.p.n) +
         " t=" + n(c.p.t) + " tw=" + n(c.p.tw) + " norm=" + n(c.p.norm) + " transposed=" + n(c.p.transposed) +
         " splits=" + n(c.p.num_splits) + " layout=" + n(c.p.scale_layout) +
         " zero_point=" + n(c.p.has_zero_point) + " groups=" + n(c.p.scale_groups) +
         " block=" + n(c.p.scale_block) + " quant=" + n(c.p.activation_quant) +
         (packed ? " packed" : " unpacked") + " threads=" + n(threads);
}

void Fail(const std::string& what) {
  if (++failures <= 20) std::printf("FAIL %s\n", what.c_str());
}

// Runs one case and checks every element of every output; returns the bytes of the outputs.
std::vector<char> RunAndCheck(Case& c, Isa isa, bool use_packed, int threads) {
  ++cases;
  const std::string name = Describe(c, isa, use_packed, threads);
  ThreadedPool pool(threads);
  for (Tensor& t : c.y) t.Poison();
  c.norm.Poison();
  const Operands o = c.GetOperands();
  Buffer packed(PackedBytes(c.p, isa)), scratch(ScratchBytes(c.p, isa, threads, use_packed));
  if (use_packed) Pack(c.p, o, isa, pool.pool, packed.Data());
  const int64_t before = allocations;
  Run(c.p, o, use_packed ? packed.Data() : nullptr, isa, pool.pool, scratch.Data());
  if (threads == 1 && allocations != before)  // else the pool's threads may count
    Fail(name + ": allocated " + std::to_string(allocations - before) + " times");

  // Bound per element, with u = 2^-24: the statistics and the row's scaling cost a few u relative to the
  // row's largest value before the mean is removed; a dot product of K terms in any order costs at most K u
  // times the sum of magnitudes; in practice errors add like a random walk, hence the root, with a factor
  // that fresh inputs stay under.
  const double u = 0x1p-24;
  const double terms = 4.0 * std::sqrt(static_cast<double>(c.p.k)) + 16.0;
  for (int64_t r = 0; r < c.p.m; ++r) {
    std::vector<double> row = c.NormRow(r);
    double largest = 0;
    for (double v : row) largest = std::max(largest, std::fabs(v));
    // Error of one normalised element: a few roundings of the row's statistics and of its own scaling.
    const double element = c.p.norm == NormType::kNone ? 0 : 16 * u * largest;
    if (o.norm) {
      for (int64_t k = 0; k < c.p.k; ++k, ++elements) {
        const double got = c.norm.Get(r * c.p.k + k);
        const double bound = element + RoundingOf(c.p.t) * std::fabs(row[k]) + SmallestOf(c.p.t);
        if (!(std::fabs(got - row[k]) <= bound))
          Fail(name + " norm[" + std::to_string(r) + "," + std::to_string(k) + "] = " + std::to_string(got) +
               ", expected " + std::to_string(row[k]) + " +- " + std::to_string(bound));
      }
    }
    double step =
        0;  // activation_quant: the reference rounds the same way, but a tie may fall to the other side
    if (c.p.activation_quant && largest > 0) {
      step = largest / 127.0;
      for (double& v : row) v = std::nearbyint(v / step) * step;
    }
    int64_t column = 0;
    for (size_t s = 0; s < c.splits.size(); ++s) {
      for (int64_t j = 0; j < c.splits[s]; ++j, ++column, ++elements) {
        double sum = 0, magnitude = 0, widest = 0;
        for (int64_t k = 0; k < c.p.k; ++k) {
          const double wt = c.Weight(k, column);
          sum += row[k] * wt;
          magnitude += std::fabs(row[k] * wt);
          widest = std::max(widest, std::fabs(wt));
        }
        const double bias = o.bias ? c.c.Get(column) : 0;
        const double expected = sum + bias;
        double bound = terms * u * (magnitude + std::fabs(bias)) +
                       element * std::sqrt(static_cast<double>(c.p.k)) * widest +
                       RoundingOf(c.p.t) * std::fabs(expected) + SmallestOf(c.p.t);
        if (step > 0) bound += 2 * step * widest;  // two ties in a row of random values are improbable
        const double got = c.y[s].Get(r * c.splits[s] + j);
        if (!(std::fabs(got - expected) <= bound))
          Fail(name + " y" + std::to_string(s) + "[" + std::to_string(r) + "," + std::to_string(j) +
               "] = " + std::to_string(got) + ", expected " + std::to_string(expected) + " +- " +
               std::to_string(bound));
      }
    }
  }
  std::vector<char> bytes;
  for (size_t s = 0; s < c.y.size(); ++s) {
    const char* d = c.y[s].Data();
    bytes.insert(bytes.end(), d, d + c.y[s].Count() * static_cast<int64_t>(SizeOf(c.p.t)));
  }
  return bytes;
}

void RunAll(Case& c, Isa isa, std::mt19937& random) {
  c.Fill(random);
  const auto first = RunAndCheck(c, isa, true, 1);
  if (RunAndCheck(c, isa, true, 1) != first) Fail(Describe(c, isa, true, 1) + ": a second run differs");
  if (RunAndCheck(c, isa, false, 3) != first)
    Fail(Describe(c, isa, false, 3) + ": unpacked or threaded differs");
}

std::vector<int64_t> Split(int64_t n, int parts) {
  if (parts <= 1 || n < parts) return {n};
  if (parts == 2) return {n / 3, n - n / 3};
  return {n - 2 * (n / 4) - (n > 8 ? 1 : 0), n / 4, n / 4 + (n > 8 ? 1 : 0)};
}

void TestShapes(Isa isa, std::mt19937& random) {
  const Tile tile = TileOf(isa);
  const std::vector<int64_t> ms = {0, 1, 2, 3, tile.mr - 1, tile.mr, tile.mr + 1, 2 * tile.mr + 1, 37};
  const std::vector<int64_t> ns = {1, 3, tile.nr - 1, tile.nr, tile.nr + 1, 3 * tile.nr + 5};
  const std::vector<int64_t> ks = {0, 1, 7, 33, kKBlock - 1, kKBlock, kKBlock + 1, 2 * kKBlock + 19};
  for (int64_t m : ms)
    for (int64_t n : ns)
      for (int64_t k : ks) {
        Case c;
        c.p.m = m, c.p.n = n, c.p.k = k;
        c.p.norm = static_cast<NormType>((m + n + k) % 3);
        c.p.tw = static_cast<DType>((m + n) % 3);
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
            for (int64_t layout :
                 {1, 2, 4, 0, -8, -32, -160}) {  // groups; 0: per column; negative: blocks along K
              Case c;
              c.p.m = m, c.p.n = n, c.p.k = 320;
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

void TestPlan() {
  Problem p;
  p.m = 1, p.k = 4096, p.n = 12288;
  const Plan one = MakePlan(p, Isa::kAvx512, 2);
  if (one.widen || one.gemm_tasks < 2 || one.row_blocks != 1) Fail("plan for one row: " + ToString(one));
  p.m = kMaxRowBlock + 1;
  const Plan two = MakePlan(p, Isa::kAvx512, 2);
  if (!two.widen || two.row_blocks != 2 || two.block_rows > kMaxRowBlock)
    Fail("plan for many rows: " + ToString(two));
  p.m = 1, p.k = 8, p.n = 8;
  if (MakePlan(p, Isa::kAvx512, 16).gemm_tasks != 1) Fail("a tiny problem is one task");
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

}  // namespace

int main(int argc, char** argv) {
  const unsigned seed = argc > 1 ? static_cast<unsigned>(std::atoi(argv[1])) : std::random_device{}();
  std::printf("seed %u (pass it as the argument to repeat)\n", seed);
  TestConversions();
  TestPlan();
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (!IsaSupported(isa)) {
      std::printf("%s: this processor lacks it, not tested\n", IsaName(isa));
      continue;
    }
    std::mt19937 random(seed);
    TestShapes(isa, random);
    TestTypes(isa, random);
    TestInt8(isa, random);
    TestZeroRows(isa, random);
    TestOverflow(isa, random);
    TestLargeBlocks(isa, random);
    std::printf("%s: %lld cases, %lld elements so far, %d failures\n", IsaName(isa),
                static_cast<long long>(cases), static_cast<long long>(elements), failures);
  }
  return failures == 0 ? 0 : 1;
}
