// One call: normalise a block of rows into scratch, multiply it with every panel of W, write the splits.
#include "ops/cpu/qkv_gemm_cpu.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/packed.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/plan.h"

namespace qkvgemm::cpu {

const Kernels& KernelsOf(Isa isa) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return Avx512Kernels();
  if (isa == Isa::kAvx2) return Avx2Kernels();
#endif
  (void)isa;
  return ScalarKernels();
}

namespace {

size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Where the parts of the caller's scratch buffer begin.
struct Scratch {
  size_t rows;    // float [block_rows, k], as row tiles of [k][rows of the tile]
  size_t line;    // float [row tiles][k]: a tile's current row, before it goes to its place among the others
  size_t gamma;   // float [k]
  size_t beta;    // float [k]
  size_t packed;  // W, where it is not constant
  size_t bytes;

  Scratch(const Problem& problem, Isa isa, const Plan& plan, bool packed_weights) {
    const auto k = static_cast<size_t>(problem.k);
    const auto tiles = static_cast<size_t>(RowTiles(plan.block_rows, plan.tile.mr).count);
    rows = 0;
    line = rows + RoundUp64(static_cast<size_t>(plan.block_rows) * k * sizeof(float));
    gamma = line + RoundUp64(tiles * k * sizeof(float));
    beta = gamma + (problem.gamma_type == DType::kFloat ? 0 : RoundUp64(k * sizeof(float)));
    packed = beta + (problem.beta_type == DType::kFloat ? 0 : RoundUp64(k * sizeof(float)));
    bytes = packed + (packed_weights ? 0 : PackedLayout(problem, isa).bytes);
  }
};

const void* At(const void* base, int64_t index, DType type) {
  return static_cast<const char*>(base) + index * static_cast<int64_t>(SizeOf(type));
}

void* At(void* base, int64_t index, DType type) {
  return static_cast<char*>(base) + index * static_cast<int64_t>(SizeOf(type));
}

const float* AsFloat(const Kernels& kernels, const void* vector, DType type, int64_t count, float* scratch) {
  if (vector == nullptr || type == DType::kFloat) return static_cast<const float*>(vector);
  kernels.to_float(type, vector, scratch, count);
  return scratch;
}

// Normalises rows [begin, begin + count) of the input into one tile [k][count], and into the `norm` output.
void NormalizeTile(const Problem& p, const Operands& o, const Kernels& kernels, const RowNorm& norm,
                   int64_t begin, int64_t count, float* line, float* tile) {
  if (p.k == 0) return;  // the pointers may be null
  for (int64_t r = 0; r < count; ++r) {
    float* row = count == 1 ? tile : line;
    kernels.to_float(p.t, At(o.input, (begin + r) * p.k, p.t), row, p.k);
    kernels.normalize(norm, row, row, p.k);
    if (o.norm) kernels.from_float(p.t, row, At(o.norm, (begin + r) * p.k, p.t), p.k);
    if (norm.activation_quant) kernels.quantize_row(row, p.k);
    if (count > 1) {
      for (int64_t k = 0; k < p.k; ++k) tile[k * count + r] = line[k];
    }
  }
}

// Writes `rows` rows of one panel, c [rows][nr], to the splits that its columns belong to, bias added.
void Store(const Problem& p, const Operands& o, const Kernels& kernels, int64_t nr, int64_t panel,
           int64_t first_row, int64_t rows, float* c) {
  const int64_t first = panel * nr;
  const int64_t columns = std::min(nr, p.n - first);
  if (o.bias) {
    float bias[kMaxNr];
    kernels.to_float(p.bias_type, At(o.bias, first, p.bias_type), bias, columns);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < columns; ++i) c[r * nr + i] += bias[i];
  }
  int64_t split_begin = 0;
  for (int64_t s = 0; s < p.num_splits && split_begin < first + columns; ++s) {
    const int64_t width = p.splits[s];
    const int64_t begin = std::max(split_begin, first);
    const int64_t end = std::min(split_begin + width, first + columns);
    for (int64_t r = 0; o.y[s] != nullptr && begin < end && r < rows; ++r) {
      kernels.from_float(p.t, c + r * nr + (begin - first),
                         At(o.y[s], (first_row + r) * width + (begin - split_begin), p.t), end - begin);
    }
    split_begin += width;
  }
}

}  // namespace

size_t ScratchBytes(const Problem& problem, Isa isa, int threads, bool packed_weights, const Choice& choice) {
  return Scratch(problem, isa, MakePlan(problem, isa, threads, choice), packed_weights).bytes;
}

void Run(const Problem& p, const Operands& o, const void* packed, Isa isa, const ThreadPool& pool,
         void* scratch, const Choice& choice) {
  if (p.m == 0) return;
  const Kernels& kernels = KernelsOf(isa);
  const Plan plan = MakePlan(p, isa, pool.threads, choice);
  const PackedLayout layout(p, isa);
  const Scratch parts(p, isa, plan, packed != nullptr);
  char* base = static_cast<char*>(scratch);
  if (packed == nullptr) {
    Pack(p, o, isa, pool, base + parts.packed);
    packed = base + parts.packed;
  }
  RowNorm norm{p.norm, p.epsilon, nullptr, nullptr, p.activation_quant};
  norm.gamma = AsFloat(kernels, o.gamma, p.gamma_type, p.k, reinterpret_cast<float*>(base + parts.gamma));
  norm.beta = AsFloat(kernels, o.beta, p.beta_type, p.k, reinterpret_cast<float*>(base + parts.beta));
  auto* rows_buffer = reinterpret_cast<float*>(base + parts.rows);
  auto* lines = reinterpret_cast<float*>(base + parts.line);
  ThreadPool serial;

  for (int64_t first = 0; first < p.m; first += plan.block_rows) {
    const int64_t rows = std::min(plan.block_rows, p.m - first);
    const RowTiles tiles(rows, plan.tile.mr);
    ParallelFor(plan.parallel_norm ? pool : serial, tiles.count, [&](int64_t t) {
      const int64_t begin = tiles.Begin(t);
      NormalizeTile(p, o, kernels, norm, first + begin, tiles.Begin(t + 1) - begin, lines + t * p.k,
                    rows_buffer + begin * p.k);
    });
    ParallelFor(pool, plan.panels == 0 ? 0 : plan.gemm_tasks, [&](int64_t task) {
      alignas(64) float c[kMaxRowBlock * kMaxNr];
      const int64_t begin = plan.panels * task / plan.gemm_tasks;
      const int64_t end = plan.panels * (task + 1) / plan.gemm_tasks;
      for (int64_t i = begin; i < end; ++i) {
        const Panel panel = layout.PanelAt(p, packed, i);
        if (tiles.count == 1) {
          kernels.multiply_streamed(rows_buffer, static_cast<int>(rows), panel, c);
        } else {
          kernels.multiply_widened(rows_buffer, rows, panel, c);
        }
        Store(p, o, kernels, layout.nr, i, first, rows, c);
      }
    });
  }
}

}  // namespace qkvgemm::cpu
