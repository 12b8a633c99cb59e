// What an instruction set provides: the table of functions that one translation unit fills.
#pragma once

#include <cstdint>

#include "ops/cpu/isa.h"
#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/problem.h"

namespace qkvgemm::cpu {

// One column panel of packed W, for one task.
struct Panel {
  const void* weight;  // [k / group][nr][group] elements of TW
  int64_t k;           // a multiple of `group`
  DType tw;
  int group;
  bool is_unsigned;  // int8 are stored as weight + 128
  // int8 only. Column scales: `scale` and `zero_point` are [nr]. Blocks along K: [k / block][stride], offset
  // to this panel's columns. zero_point may be null.
  const float* scale;
  const float* zero_point;
  int64_t block;   // 0: one scale a column
  int64_t stride;  // floats from one block's row to the next
};

// Normalised rows as a product takes them.
struct Rows {
  Operand operand;
  bool matrix;
  int digits;  // of a row, the highest first, each laid out like a row
  int64_t count;
  int64_t k;  // the panel's
  // Row tiles as in RowTiles, each [k / depth][rows of the tile][digits] lanes; for products of matrices
  // [k / depth / row_run][rows of the tile][digits][row_run].
  const uint32_t* lanes;
  // kInt8 only: a row's step, and the sums of its digits in each block of scales.
  const float* scale;   // [count]
  const int32_t* sums;  // [count][digits][blocks]
  int64_t blocks;
};

// What a task multiplies of a panel: some row tiles, and some of K.
struct Part {
  int64_t first_tile, end_tile;
  // Multiples of what lies together, of a row and of W, and of a block of scales; or the panel's k.
  int64_t first_k, end_k;
};

// Statistics of one row, float32: x_hat = (x - mean) * rstd.
struct RowNorm {
  NormType norm;
  float epsilon;
  const float* gamma;  // null: ones
  const float* beta;   // null: zeros
};

// A matrix's rows, as far as one panel's columns lie in them.
struct RowsOfFloats {
  const float* data;
  int64_t rows;
  int64_t pitch;  // elements from row to row
};
struct RowsOfResults {
  DType type;
  void* data;
  int64_t pitch;
};

// Takes the results of a row tile, [count][nr], as soon as they are there: while they are on their way to
// memory, the next tile is computed.
struct Receiver {
  void (*take)(const void* context, int64_t first_row, const RowsOfFloats& results);
  const void* context;
};

struct Kernels {
  void (*to_float)(DType from, const void* source, float* target, int64_t count);
  // source and target may be the same.
  void (*from_float)(DType to, const float* source, void* target, int64_t count);
  // Stores rows of `columns` floats, `from.pitch` elements apart, with a bias (null: none) added to each.
  void (*store)(const RowsOfFloats& from, const float* bias, int64_t columns, const RowsOfResults& to);
  // x [k] -> normalised [k]; x and out may be the same.
  void (*normalize)(const RowNorm& norm, const float* x, float* out, int64_t k);
  // activation_quant in float: rounds to int8 with one scale for the row, max|x| / 127, and back.
  void (*round_row)(float* x, int64_t k);
  // A row in fixed point: x = step * sum over d of 256^(digits - 1 - d) q[d], rounded to nearest, with a step
  // that gives the largest |x| 127 in the first digit. Returns the step, NaN where the row is not finite.
  float (*split_row)(const float* x, int64_t k, int digits, int8_t* q);  // q [digits][k]
  // A part of A * W for one panel, handed over tile by tile. `widen`: as in Plan; c: [rows of the part]
  // [digits][nr], for sums. Without a receiver they stay there as they are, float or int32.
  void (*multiply)(const Rows& rows, const Panel& panel, const Part& part, bool widen, float* c,
                   const Receiver* receiver);
  // Adds up what was left of `parts` parts of K, [parts][rows][digits][nr], in their order, and hands it
  // over.
  void (*combine)(const Rows& rows, const Panel& panel, float* sums, int64_t parts, const Receiver& receiver);
  // For benchmarks: multiplies registers with each other and returns how many products it made, a multiple of
  // `steps`. `sink` [nr] is read and written.
  int64_t (*spin)(Operand operand, int64_t steps, uint32_t* sink);
};

const Kernels& ScalarKernels();
const Kernels& Avx2Kernels();
const Kernels& AvxVnniKernels();
const Kernels& Avx512Kernels();
const Kernels& Avx512VnniKernels();
const Kernels& Avx512Bf16Kernels();
const Kernels& AmxKernels();
const Kernels& NeonKernels();
const Kernels& NeonDotKernels();
const Kernels& NeonI8mmKernels();
const Kernels& NeonBf16Kernels();
const Kernels& KernelsOf(Isa isa);

}  // namespace qkvgemm::cpu
