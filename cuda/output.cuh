// From sums to outputs.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/families.h"

namespace qkvgemm::cuda {

// What the sum of a column of W and a row of the input becomes.
__device__ __forceinline__ float Finish(const Column& column, float sum, const RowStatistics& row) {
  return fmaf(row.rstd, fmaf(sum, column.scale, -row.mean * column.column_sum), column.constant);
}

// The part of an output that one column of W writes.
template <typename T>
struct OutputColumn {
  T* first;  // null: not wanted
  int width;

  // column < p.n
  __device__ __forceinline__ OutputColumn(const Product& p, int column) {
    int split = 0;
    while (column >= p.end[split]) ++split;
    const int start = split ? p.end[split - 1] : 0;
    width = p.end[split] - start;
    first = p.y[split] ? static_cast<T*>(p.y[split]) + (column - start) : nullptr;
  }
  __device__ __forceinline__ T* Row(int row) const { return first + static_cast<int64_t>(row) * width; }
};

// The columns in 16 bytes, which need not belong to one output.
template <typename T>
__device__ __noinline__ void StoreElements(const Product& p, const uint32_t (&v)[4], int row, int column) {
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint16_t>;
  constexpr int kWordElements = 4 / sizeof(T);
  for (int e = 0; e < 4 * kWordElements && column + e < p.n; ++e) {
    const OutputColumn<Bits> y(p, column + e);
    if (y.first) *y.Row(row) = static_cast<Bits>(v[e / kWordElements] >> (e % kWordElements * 16));
  }
}

}  // namespace qkvgemm::cuda
