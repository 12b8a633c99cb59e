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
  int64_t count;
  int64_t k;  // the panel's
  // Row tiles as in RowTiles, each [k / depth][rows of the tile] lanes; on matrix registers
  // [k / depth / kMatrixRun][rows of the tile][kMatrixRun].
  const uint32_t* lanes;
  // kInt8 only: a row's step, and the sums of its integers in each block of scales.
  const float* scale;   // [count]
  const int32_t* sums;  // [count][blocks]
  int64_t blocks;
};

// Statistics of one row, float32: x_hat = (x - mean) * rstd.
struct RowNorm {
  NormType norm;
  float epsilon;
  const float* gamma;  // null: ones
  const float* beta;   // null: zeros
};

struct Kernels {
  void (*to_float)(DType from, const void* source, float* target, int64_t count);
  // source and target may be the same.
  void (*from_float)(DType to, const float* source, void* target, int64_t count);
  // x [k] -> normalised [k]; x and out may be the same.
  void (*normalize)(const RowNorm& norm, const float* x, float* out, int64_t k);
  // Rounds to int8 with one scale for the row, max|x| / 127, and returns it. The integers go to `q`, which
  // may be x itself, or (q null) come back into x as floats times the scale.
  float (*quantize_row)(float* x, int64_t k, int8_t* q);
  // c [rows][nr] = A * W for one panel. `widen`: as in Plan. With as many rows as one register tile takes, or
  // more.
  void (*multiply)(const Rows& rows, const Panel& panel, bool widen, float* c);
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
const Kernels& KernelsOf(Isa isa);

}  // namespace qkvgemm::cpu
