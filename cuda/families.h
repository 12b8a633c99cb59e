// What each source file of this folder provides to the launch interface.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

#include "cuda/layout.h"
#include "cuda/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cuda {

inline bool Aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// What a product of the matrix families reads and writes, prepared for a kernel.
struct Product {
  void* rows = nullptr;                 // [m, pitch]
  int64_t pitch = 0;                    // elements
  RowStatistics* statistics = nullptr;  // null: mean 0, rstd 1
  const void* weights = nullptr;        // pieces
  const Column* columns = nullptr;
  const void* factors = nullptr;  // kInt8: gamma's
  int m = 0, n = 0, k = 0;
  int piece_rows = 0, pieces_per_row = 0;
  // Splits: outputs [m, width[i]] for the columns up to end[i].
  int splits = 0;
  bool vector_stores = false;  // each output and each split's first column allow 16-byte stores
  void* y[kMaxSplits] = {};
  int end[kMaxSplits] = {};
  uint32_t* counters = nullptr;  // of statistics that the blocks share out; null: those are there
};

// Row statistics, rows in the form a product wants, and the `norm` output. Launched so that the kernel after
// it may start before it ends (programmatic dependent launch) and must wait for it before it reads what this
// wrote.
cudaError_t PrepareRows(const Problem& problem, const Operands& operands, Rows rows, const Product& product,
                        cudaStream_t stream);

cudaError_t RunHopper(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                      cudaStream_t stream);
cudaError_t PrepareHopper();  // raises shared-memory limits on the current device
cudaError_t RunStream(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                      cudaStream_t stream);
cudaError_t RunTile(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                    cudaStream_t stream);
cudaError_t PrepareTile();

size_t GenericScratchBytes(const Problem& problem);
cudaError_t RunGeneric(const Problem& problem, const Operands& operands, void* scratch, cudaStream_t stream);

}  // namespace qkvgemm::cuda
