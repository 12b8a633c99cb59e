// What an instruction set provides: the table of functions that one translation unit fills.
#pragma once

#include <cstdint>

#include "ops/cpu/qkv_gemm_cpu.h"
#include "ops/problem.h"

namespace qkvgemm::cpu {

// One column panel of packed W, for one task.
struct Panel {
  const void* weight;  // [k][nr] elements of TW
  int64_t k;
  DType tw;
  // int8 only. Column scales: `scale` and `zero_point` are [nr]. Blocks along K: [k / block][stride], offset
  // to this panel's columns. zero_point may be null.
  const float* scale;
  const float* zero_point;
  int64_t block;   // 0: one scale a column
  int64_t stride;  // floats from one block's row to the next
};

// Statistics of one row, float32: x_hat = (x - mean) * rstd.
struct RowNorm {
  NormType norm;
  float epsilon;
  const float* gamma;  // null: ones
  const float* beta;   // null: zeros
  bool activation_quant;
};

struct Kernels {
  void (*to_float)(DType from, const void* source, float* target, int64_t count);
  void (*from_float)(DType to, const float* source, void* target, int64_t count);
  // x [k] -> normalised [k]; x and out may be the same.
  void (*normalize)(const RowNorm& norm, const float* x, float* out, int64_t k);
  // Rounds to int8 with one scale for the row and back: x becomes scale * q, scale = max|x| / 127.
  void (*quantize_row)(float* x, int64_t k);
  // c [rows][nr] = A * W for one panel; a holds row tiles, each [k][rows of the tile]. rows <= mr.
  void (*multiply_streamed)(const float* a, int rows, const Panel& panel, float* c);
  // The same for any number of rows: W is widened to float once per K block. `tile_begin(i)` as in RowTiles.
  void (*multiply_widened)(const float* a, int64_t rows, const Panel& panel, float* c);
};

const Kernels& ScalarKernels();
const Kernels& Avx2Kernels();
const Kernels& Avx512Kernels();
const Kernels& KernelsOf(Isa isa);

}  // namespace qkvgemm::cpu
