// One call: normalise a block of rows into scratch, multiply it with every panel of W, write the splits.
#include "ops/cpu/qkv_gemm_cpu.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "ops/cpu/kernels.h"
#include "ops/cpu/packed.h"
#include "ops/cpu/parallel.h"
#include "ops/cpu/plan.h"

namespace qkvgemm::cpu {

const Kernels& KernelsOf(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return ScalarKernels();
#if defined(__x86_64__)
    case Isa::kAvx2:
      return Avx2Kernels();
    case Isa::kAvxVnni:
      return AvxVnniKernels();
    case Isa::kAvx512:
      return Avx512Kernels();
    case Isa::kAvx512Vnni:
      return Avx512VnniKernels();
    case Isa::kAvx512Bf16:
      return Avx512Bf16Kernels();
    case Isa::kAmx:
      return AmxKernels();
#elif defined(__aarch64__)
    case Isa::kNeon:
      return NeonKernels();
    case Isa::kNeonDot:
      return NeonDotKernels();
    case Isa::kNeonI8mm:
      return NeonI8mmKernels();
    case Isa::kNeonBf16:
      return NeonBf16Kernels();
#endif
    default:
      break;
  }
  return ScalarKernels();
}

namespace {

size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Blocks of scales along a column of packed W.
int64_t BlocksOf(const Problem& problem, const WeightFormat& format) {
  if (problem.scale_layout == ScaleLayout::kBlocks) return problem.k / problem.scale_block;
  return (format.k + kMaxInt8Depth - 1) / kMaxInt8Depth;
}

// Where the parts of the caller's scratch buffer begin.
struct Scratch {
  size_t rows;   // block_rows rows in the operand's form, as row tiles: Rows::lanes
  size_t line;   // [row tiles][parts][line_bytes]: a current row, before it goes to its place
  size_t scale;  // int8 rows only: Rows::scale, Rows::sums
  size_t sums;
  // Plans with parts of K only:
  size_t parts;   // float or int32 [panels][parts][rows][digits][nr]
  size_t done;    // int32 [panels]: how many parts are
  size_t gamma;   // float [k]
  size_t beta;    // float [k]
  size_t packed;  // W, where it is not constant
  size_t bytes;
  size_t line_bytes;  // float [format.k], then int8 [digits][format.k]

  Scratch(const Problem& problem, Isa isa, const Plan& plan, bool packed_weights) {
    const WeightFormat format = FormatOf(problem, isa);
    const auto k = static_cast<size_t>(problem.k), padded_k = static_cast<size_t>(format.k);
    const auto block_rows = static_cast<size_t>(plan.block_rows);
    const auto lane_rows = block_rows * static_cast<size_t>(plan.digits);
    const auto tiles = static_cast<size_t>(RowTiles(plan.block_rows, TileRows(plan)).count);
    size_t end = 0;
    const auto take = [&end](size_t size) {
      const size_t begin = end;
      end += RoundUp64(size);
      return begin;
    };
    const bool quantised = plan.operand == Operand::kInt8;
    rows = take(lane_rows * padded_k / static_cast<size_t>(DepthOf(plan.operand)) * sizeof(uint32_t));
    line_bytes = RoundUp64(padded_k * sizeof(float)) +
                 (quantised ? RoundUp64(padded_k * static_cast<size_t>(plan.digits)) : 0);
    line = take(tiles * static_cast<size_t>(NormParts(plan)) * line_bytes);
    scale = take(quantised ? block_rows * sizeof(float) : 0);
    sums = take(quantised ? lane_rows * static_cast<size_t>(BlocksOf(problem, format)) * sizeof(int32_t) : 0);
    const size_t left = lane_rows * static_cast<size_t>(plan.panels * plan.tile.nr) * sizeof(float);
    parts = take(plan.spread.depth_parts > 1 ? left * static_cast<size_t>(plan.spread.depth_parts) : 0);
    done = take(plan.spread.depth_parts > 1 ? static_cast<size_t>(plan.panels) * sizeof(int32_t) : 0);
    gamma = take(problem.gamma_type == DType::kFloat ? 0 : k * sizeof(float));
    beta = take(problem.beta_type == DType::kFloat ? 0 : k * sizeof(float));
    packed = take(packed_weights ? 0 : PackedLayout(problem, isa).bytes);
    bytes = end;
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

// A row tile, and where its rows go in their operand's form.
struct TileTarget {
  int64_t first, count;  // rows of the input
  uint32_t* lanes;
  float* scale;
  int32_t* sums;
};

// Splits a row into digits, [digits][padded k] behind the line, and sums them up by blocks of scales.
void SplitRow(const Problem& p, const Kernels& kernels, const WeightFormat& format, int digits,
              const float* row, int8_t* q, float* scale, int32_t* sums) {
  *scale = kernels.split_row(row, format.k, digits, q);
  const int64_t blocks = BlocksOf(p, format);
  const int64_t depth = p.scale_layout == ScaleLayout::kBlocks ? p.scale_block : kMaxInt8Depth;
  for (int64_t d = 0; d < digits; ++d, q += format.k)
    for (int64_t b = 0; b < blocks; ++b) {
      int32_t sum = 0;
      for (int64_t k = b * depth, end = std::min(format.k, k + depth); k < end; ++k) sum += q[k];
      *sums++ = sum;
    }
}

// Normalises rows [begin, end) of a tile into its lanes, and into the `norm` output. line: see Scratch.
void NormalizeRows(const Problem& p, const Operands& o, const Kernels& kernels, const RowNorm& norm,
                   const WeightFormat& format, const Plan& plan, const TileTarget& tile, int64_t begin,
                   int64_t end, char* line) {
  if (p.k == 0) return;  // the pointers may be null
  const int64_t lanes = format.k / DepthOf(plan.operand), lane_rows = tile.count * plan.digits;
  const int64_t run = lane_rows == 1 ? lanes : plan.run;
  auto* row = reinterpret_cast<float*>(line);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t at = (tile.first + r) * p.k;
    kernels.to_float(p.t, At(o.input, at, p.t), row, p.k);
    std::fill(row + p.k, row + format.k, 0.0f);
    kernels.normalize(norm, row, row, p.k);
    if (o.norm) kernels.from_float(p.t, row, At(o.norm, at, p.t), p.k);
    const char* source = line;
    if (plan.operand == Operand::kInt8) {
      char* q = line + RoundUp64(static_cast<size_t>(format.k) * sizeof(float));
      SplitRow(p, kernels, format, plan.digits, row, reinterpret_cast<int8_t*>(q), tile.scale + r,
               tile.sums + r * plan.digits * BlocksOf(p, format));
      source = q;
    } else if (plan.operand == Operand::kBFloat16) {
      kernels.from_float(DType::kBFloat16, row, row, format.k);
    } else if (p.activation_quant) {
      kernels.round_row(row, p.k);
    }
    for (int d = 0; d < plan.digits; ++d, source += lanes * 4) {
      uint32_t* to = tile.lanes + (r * plan.digits + d) * run;
      if (run == 1) {
        for (int64_t i = 0; i < lanes; ++i) std::memcpy(to + i * lane_rows, source + i * 4, 4);
      } else {
        for (int64_t i = 0; i < lanes; i += run)
          std::memcpy(to + i * lane_rows, source + i * 4, static_cast<size_t>(run) * 4);
      }
    }
  }
}

// One panel's columns of the outputs, from row `first_row` of the input on.
class PanelOutput {
 public:
  PanelOutput(const Problem& p, const Operands& o, const Kernels& kernels, int64_t nr, int64_t panel,
              int64_t first_row)
      : p_(p),
        o_(o),
        kernels_(kernels),
        first_(panel * nr),
        end_(std::min(p.n, first_ + nr)),
        first_row_(first_row) {
    if (o.bias) kernels.to_float(p.bias_type, At(o.bias, first_, p.bias_type), bias_, end_ - first_);
  }
  Receiver GetReceiver() const {
    return {[](const void* self, int64_t row, const RowsOfFloats& results) {
              static_cast<const PanelOutput*>(self)->Take(row, results);
            },
            this};
  }

 private:
  // Writes rows, the first of which is `row` of the block, to the splits that the columns belong to.
  void Take(int64_t row, const RowsOfFloats& results) const {
    int64_t split_begin = 0;
    for (int64_t s = 0; s < p_.num_splits && split_begin < end_; ++s) {
      const int64_t width = p_.splits[s];
      const int64_t begin = std::max(split_begin, first_), end = std::min(split_begin + width, end_);
      if (o_.y[s] != nullptr && begin < end)
        kernels_.store({results.data + (begin - first_), results.rows, results.pitch},
                       o_.bias ? bias_ + (begin - first_) : nullptr, end - begin,
                       {p_.t, At(o_.y[s], (first_row_ + row) * width + (begin - split_begin), p_.t), width});
      split_begin += width;
    }
  }

  const Problem& p_;
  const Operands& o_;
  const Kernels& kernels_;
  const int64_t first_, end_;  // columns
  const int64_t first_row_;
  float bias_[kMaxNr];
};

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
  RowNorm norm{p.norm, p.epsilon, nullptr, nullptr};
  norm.gamma = AsFloat(kernels, o.gamma, p.gamma_type, p.k, reinterpret_cast<float*>(base + parts.gamma));
  norm.beta = AsFloat(kernels, o.beta, p.beta_type, p.k, reinterpret_cast<float*>(base + parts.beta));
  auto* lanes = reinterpret_cast<uint32_t*>(base + parts.rows);
  auto* scales = reinterpret_cast<float*>(base + parts.scale);
  auto* sums = reinterpret_cast<int32_t*>(base + parts.sums);
  const int64_t blocks = BlocksOf(p, layout.format), padded_k = layout.format.k;
  ThreadPool serial;

  for (int64_t first = 0; first < p.m; first += plan.block_rows) {
    const int64_t count = std::min(plan.block_rows, p.m - first);
    const RowTiles tiles(count, TileRows(plan));
    const int64_t norm_parts = NormParts(plan);
    ParallelFor(plan.parallel_norm ? pool : serial, tiles.count * norm_parts, [&](int64_t task) {
      const int64_t t = task / norm_parts, part = task % norm_parts;
      const int64_t begin = tiles.Begin(t), in_tile = tiles.Begin(t + 1) - begin;
      const TileTarget tile{first + begin, in_tile,
                            lanes + plan.digits * begin * padded_k / DepthOf(plan.operand), scales + begin,
                            sums + plan.digits * begin * blocks};
      NormalizeRows(p, o, kernels, norm, layout.format, plan, tile, in_tile * part / norm_parts,
                    in_tile * (part + 1) / norm_parts,
                    base + parts.line + static_cast<size_t>(task) * parts.line_bytes);
    });
    const Rows rows{plan.operand, plan.run > 1, plan.digits, count, padded_k, lanes, scales, sums, blocks};
    const Spread& spread = plan.spread;
    const int64_t part_size = count * plan.digits * layout.nr;
    const auto sums_of = [&](int64_t panel, int64_t part) {
      return reinterpret_cast<float*>(base + parts.parts) + (panel * spread.depth_parts + part) * part_size;
    };
    auto* done = reinterpret_cast<int32_t*>(base + parts.done);
    if (spread.depth_parts > 1) std::fill(done, done + plan.panels, 0);
    const int64_t units = (padded_k + plan.depth_unit - 1) / plan.depth_unit;
    // Tasks of the same columns are neighbours: they read W at about the same time.
    ParallelFor(pool, plan.panels == 0 ? 0 : spread.Tasks(), [&](int64_t task) {
      alignas(64) float c[kMaxRowBlock * kMaxNr];
      const int64_t d = task % spread.depth_parts, r = task / spread.depth_parts % spread.row_parts;
      const int64_t column_part = task / (spread.depth_parts * spread.row_parts);
      const Part part{tiles.count * r / spread.row_parts, tiles.count * (r + 1) / spread.row_parts,
                      units * d / spread.depth_parts * plan.depth_unit,
                      std::min(padded_k, units * (d + 1) / spread.depth_parts * plan.depth_unit)};
      if (part.first_tile == part.end_tile) return;  // a shorter last block may have fewer tiles
      const int64_t end = plan.panels * (column_part + 1) / spread.column_parts;
      for (int64_t i = plan.panels * column_part / spread.column_parts; i < end; ++i) {
        const Panel panel = layout.PanelAt(p, packed, i);
        const PanelOutput output(p, o, kernels, layout.nr, i, first);
        const Receiver receiver = output.GetReceiver();
        if (spread.depth_parts == 1) {
          kernels.multiply(rows, panel, part, plan.widen, c, &receiver);
          continue;
        }
        kernels.multiply(rows, panel, part, plan.widen, sums_of(i, d), nullptr);
        // Whoever is last sees what all others wrote; the order in which it adds is always the same.
        if (std::atomic_ref(done[i]).fetch_add(1, std::memory_order_acq_rel) + 1 == spread.depth_parts)
          kernels.combine(rows, panel, sums_of(i, 0), spread.depth_parts, receiver);
      }
    });
  }
}

}  // namespace qkvgemm::cpu
