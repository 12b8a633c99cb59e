#include "cuda/qkv_gemm_cuda.h"

#include <cstdint>

#include "cuda/families.h"

namespace qkvgemm::cuda {
namespace {

// Parts of the scratch memory, each 256-byte aligned.
struct Parts {
  size_t statistics, counters, rows, end;
};

Parts PartsOf(const Problem& p, const Plan& plan) {
  const auto after = [](size_t offset, size_t bytes) {
    return static_cast<size_t>(RoundUp(static_cast<int64_t>(offset + bytes), 256));
  };
  size_t rows = 0;
  if (plan.rows != Rows::kInput)
    rows = static_cast<size_t>(p.m * RowPitch(p, plan.rows) * RowElementBytes(p, plan.rows));
  Parts parts{};
  parts.counters = after(0, StatisticsBytes(p));
  parts.rows = plan.shares ? after(parts.counters, CounterBytes(p)) : parts.counters;
  parts.end = parts.rows + rows;
  return parts;
}

Product MakeProduct(const Problem& p, const Operands& o, const Plan& plan, Packing packing,
                    const void* packed, void* scratch) {
  Product product;
  const Parts parts = PartsOf(p, plan);
  auto* const bytes = static_cast<char*>(scratch);
  product.rows =
      plan.rows == Rows::kInput ? const_cast<void*>(o.input) : bytes + parts.rows;  // not written then
  product.pitch = RowPitch(p, plan.rows);
  if (p.norm != NormType::kNone || plan.rows == Rows::kQuantised)
    product.statistics = reinterpret_cast<RowStatistics*>(bytes + parts.statistics);
  // A kernel that writes normalised rows has the statistics in passing.
  if (plan.shares && o.norm == nullptr)
    product.counters = reinterpret_cast<uint32_t*>(bytes + parts.counters);
  product.weights = packed;
  const char* const columns = static_cast<const char*>(packed) + WeightBytes(p, packing);
  product.columns = reinterpret_cast<const Column*>(columns);
  product.factors = columns + ColumnBytes(p);
  product.m = static_cast<int>(p.m);
  product.n = static_cast<int>(p.n);
  product.k = static_cast<int>(p.k);
  product.piece_rows = static_cast<int>(PieceRows(p));
  product.pieces_per_row = static_cast<int>(PiecesPerRow(p, packing));
  product.vector_stores = true;
  int64_t end = 0;
  for (int64_t s = 0; s < p.num_splits; ++s) {
    if (p.splits[s] == 0) continue;
    end += p.splits[s];
    product.y[product.splits] = o.y[s];
    product.end[product.splits++] = static_cast<int>(end);
    if (p.splits[s] * static_cast<int64_t>(SizeOf(p.t)) % 16 != 0 || !Aligned(o.y[s]))
      product.vector_stores = false;
  }
  return product;
}

}  // namespace

cudaError_t GetDevice(int ordinal, Device* device) {
  int major = 0, minor = 0, before = 0;
  if (const cudaError_t e = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal))
    return e;
  if (const cudaError_t e = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal))
    return e;
  device->architecture = 10 * major + minor;
  if (const cudaError_t e =
          cudaDeviceGetAttribute(&device->multiprocessors, cudaDevAttrMultiProcessorCount, ordinal))
    return e;
  if (const cudaError_t e = cudaGetDevice(&before)) return e;
  if (const cudaError_t e = cudaSetDevice(ordinal)) return e;
  cudaError_t result = cudaSuccess;
  if (device->architecture >= 75) result = PrepareTile();
  if (device->architecture == 90 && result == cudaSuccess) result = PrepareHopper();
  const cudaError_t restored = cudaSetDevice(before);
  return result ? result : restored;
}

size_t ScratchBytes(const Problem& p, const Plan& plan) {
  if (plan.family == Family::kGeneric) return GenericScratchBytes(p);
  return PartsOf(p, plan).end;
}

cudaError_t Run(const Problem& p, const Operands& o, const Plan& plan, Packing packing, const void* packed,
                void* scratch, cudaStream_t stream) {
  if (p.m == 0) return cudaSuccess;
  if (plan.family == Family::kGeneric) return RunGeneric(p, o, scratch, stream);
  const Product product = MakeProduct(p, o, plan, packing, packed, scratch);
  // Where rows are read as they are and the product finds out what it needs of them, there is nothing to
  // prepare.
  const bool statistics =
      product.statistics != nullptr && product.counters == nullptr && !ComputesStatistics(plan, packing);
  const bool prepared = statistics || plan.rows != Rows::kInput || o.norm != nullptr;
  if (prepared)
    if (const cudaError_t e = PrepareRows(p, o, plan.rows, product, stream)) return e;
  switch (plan.family) {
    case Family::kHopper:
      return RunHopper(p, plan, packing, product, stream);
    case Family::kStream:
      return RunStream(p, plan, packing, product, stream);
    case Family::kTile:
      return RunTile(p, plan, packing, product, stream);
    case Family::kGeneric:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace qkvgemm::cuda
