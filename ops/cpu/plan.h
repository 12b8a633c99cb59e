// How a problem is tiled and spread over threads on the CPU: a pure function, so that it can be printed and
// tested without running anything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ops/cpu/isa.h"
#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/problem.h"

namespace qkvgemm::cpu {

// The register tile of an instruction set: `nr` columns by up to `mr` rows of accumulators.
struct Tile {
  int nr;
  int mr;
  friend bool operator==(const Tile&, const Tile&) = default;
};

constexpr Tile TileOf(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
    case Isa::kAvx512Vnni:
    case Isa::kAvx512Bf16:
    case Isa::kAmx:
      return {32, 14};  // 28 of 32 registers accumulate, 2 hold W, rows are broadcast from memory
    case Isa::kAvx2:
    case Isa::kAvxVnni:
      return {16, 6};  // 12 of 16 registers accumulate, 2 hold W, 1 a broadcast row
    case Isa::kNeon:
    case Isa::kNeonDot:
    case Isa::kNeonI8mm:
    case Isa::kNeonBf16:
      return {16, 6};  // 24 of 32 registers accumulate, 4 hold W, 1 a broadcast row; or 1 W, 3 pairs of rows
    case Isa::kScalar:
      break;
  }
  return {8, 4};
}

// On AMX's registers: four of eight accumulate 16 x 16 each, two hold rows, two W.
constexpr int kMatrixRows = 32;
constexpr int kMatrixRun = DotOf(Isa::kAmx).row_run;  // lanes of a row in one matrix register

constexpr int kMaxNr = 32;
// Lanes (of 32 bits) of a column of W that one pass of the micro-kernel takes for large M: 256 float, 512
// bfloat16, 1024 int8. With 32 columns they are 32 KB: W stays in the first two cache levels while every row
// tile reads it.
constexpr int kKBlock = 256;
// The same for matrix registers, which are faster than the first cache level gives them operands: what bounds
// them is that sums of 4 KB go out and come back for each block. 256 KB stay in the second cache level.
constexpr int kMatrixKBlock = 2048;
// Rows of the input normalised at a time: bounds the scratch (640 * K * 4 bytes) and the accumulators that a
// task keeps on its stack (640 * 32 * 4 bytes = 80 KB), and is large enough that W is read from memory
// rarely.
constexpr int kMaxRowBlock = 640;
// Matrix registers take rows faster than a third cache level gives them: those of a block are to fit into
// half of a second one (2 MB on processors with AMX).
constexpr int64_t kMatrixRowBytes = 1 << 20;
// int8 weights are multiplied as they are by dot products of int8: with a row in fixed point of its largest
// element, cut into digits of 8 bits. One digit is what activation_quant rounds to. Three are as exact as
// float. Two are off by 2^-16 of the largest, at the cost of a product of bfloat16, whose rounding to 2^-8 of
// each element is more in sum where sqrt(K) < 2^8: the largest is at most sqrt(K) times the mean square's
// root.
constexpr int kExactDigits = 3;
constexpr int kFewDigits = 2;
constexpr int64_t kMaxFewDigitsDepth = 1 << 16;
// Up to so many rows, memory gives int8 weights no faster than three digits are multiplied, and bfloat16 ones
// no faster than in float: rounding rows more would gain nothing.
constexpr int kExactRows = 4;
// Products of int8 that an int32 can sum up: 127 * 255 each.
constexpr int64_t kMaxInt8Depth = 1 << 16;

// How W is packed for an instruction set: whole K, whatever the number of rows.
struct WeightFormat {
  int group;         // consecutive k of a column that lie together: lanes of 32 bits, or one element
  int64_t k;         // K, padded with zeros
  bool is_unsigned;  // int8 are stored as weight + 128
};
WeightFormat FormatOf(const Problem& problem, Isa isa);

// A pass's products, cut into tasks: contiguous ranges of panels, each with each range of row tiles and of K.
struct Spread {
  int64_t column_parts = 1;
  int64_t row_parts = 1;    // each reads W anew
  int64_t depth_parts = 1;  // more than one leave their sums in scratch, and the last one adds them up

  int64_t Tasks() const { return column_parts * row_parts * depth_parts; }
  friend bool operator==(const Spread&, const Spread&) = default;
};

struct Plan {
  Tile tile;
  Operand operand;     // what rows and W are multiplied as
  int digits;          // kInt8: of a row, each like a row of its own; else 1
  int run;             // lanes of a row that lie together, for products of matrices; else 1
  int64_t panels;      // column panels of W, `nr` wide, the last one padded
  int64_t row_blocks;  // passes over W
  int64_t block_rows;  // rows in each pass, except a shorter last one
  Spread spread;       // of a pass over threads
  bool parallel_norm;  // normalise row tiles in parallel; else the calling thread does it
  int64_t depth_unit;  // K is cut at multiples of it
  bool widen;          // W is brought into the operand's form once per K block, in cache; else in registers

  friend bool operator==(const Plan&, const Plan&) = default;
};

// Rows of a register tile.
constexpr int TileRows(const Plan& plan) { return plan.tile.mr / plan.digits; }

// Tasks that normalise a row tile, so that a few tiles of many rows keep all threads busy.
constexpr int NormParts(const Plan& plan) { return std::max(1, TileRows(plan) / 8); }

Plan MakePlan(const Problem& problem, Isa isa, int threads, const Choice& choice = {});
std::string ToString(const Plan& plan);

// The choices that make different plans for a problem, the default first.
std::vector<Choice> Choices(const Problem& problem, Isa isa, int threads);

// Row tiles of a block are as equal as possible: 15 rows are 8 + 7, not 14 + 1, whose last tile would wait
// for the latency of its few accumulators.
struct RowTiles {
  int64_t rows;
  int64_t count;
  RowTiles(int64_t rows_in, int mr) : rows(rows_in), count((rows_in + mr - 1) / mr) {}
  int64_t Begin(int64_t tile) const {
    const int64_t base = rows / count, extra = rows % count;
    return tile * base + (tile < extra ? tile : extra);
  }
};

}  // namespace qkvgemm::cpu
