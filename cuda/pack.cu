// Weights in the form of layout.h.
#include <algorithm>
#include <cmath>

#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/qkv_gemm_cuda.h"

namespace qkvgemm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = kThreads / kPieceColumns;  // threads that share a column

struct Params {
  Weight weight;
  Vector gamma, beta, bias;  // data null: absent
  Packing packing;
  bool centred;  // rows are: any constant may be taken off a column
  DType t;
  int64_t pieces_per_row;
  char* pieces;
  Column* columns;
  char* factors;
};

// The largest value a column may hold after scaling: far from the overflow of float16, and so that what is
// 2^-24 of it is still a normal number there.
constexpr int kTopExponent = 14;
// The same for gamma's factors: of float16 with room for 127 times as much, of bfloat16 see layout.h.
constexpr int TopFactorExponent(DType t) { return t == DType::kBFloat16 ? kBFloat16FactorExponent : 8; }

template <typename V>
__device__ V ColumnReduce(V value, V* shared, int lane, int column, V (*combine)(V, V)) {
  __syncthreads();
  shared[lane * kPieceColumns + column] = value;
  __syncthreads();
  V result = shared[column];
  for (int i = 1; i < kLanes; ++i) result = combine(result, shared[i * kPieceColumns + column]);
  return result;
}

// Of a piece in the 128-byte swizzle.
__device__ int64_t SwizzledOffset(int column, int byte) {
  return column * kPieceRowBytes + ((byte / 16 ^ column % 8) * 16) + byte % 16;
}
__device__ int64_t Int8Offset(int column, int k) {
  const int w = column / 16, g = column % 8, second = column / 8 % 2;
  const int h = k / 32, step = k / 16 % 2, t = k % 8 / 2, far = k / 8 % 2;
  return ((w * 2 + h) * 32 + g * 4 + t) * 16 + step * 8 + far * 4 + second * 2 + k % 2;
}

__device__ int64_t FactorOffset(int k) {  // of a piece
  const int step = k / 16, far = k / 8 % 2, t = k % 8 / 2;
  return (t * 16 + step * 4 + far * 2 + k % 2) * 2;
}

__device__ float RoundedTo(DType t, float v) {
  return t == DType::kFloat16 ? __half2float(__float2half_rn(v)) : __bfloat162float(__float2bfloat16_rn(v));
}

__device__ float Gamma(const Params& p, int64_t k) { return p.gamma.data ? p.gamma.At(k) : 1.0f; }

// The power of two by which gamma is divided where it is kept in T.
__device__ int FactorExponent(const Params& p, double* shared) {
  double largest = 0;
  for (int64_t k = threadIdx.x; k < p.weight.k; k += kThreads) {
    const float v = fabsf(Gamma(p, k));
    if (isfinite(v)) largest = fmax(largest, static_cast<double>(v));
  }
  shared[threadIdx.x] = largest;
  __syncthreads();
  for (int i = 0; i < kThreads; ++i) largest = fmax(largest, shared[i]);
  int exponent = 0;
  if (largest > 0) frexp(largest, &exponent);
  return exponent - TopFactorExponent(p.t);
}

// One block packs 64 columns.
__global__ void __launch_bounds__(kThreads) PackKernel(const Params p) {
  __shared__ double shared[kThreads];
  const int c = threadIdx.x % kPieceColumns, lane = threadIdx.x / kPieceColumns;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kPieceColumns + c;
  const bool inside = column < p.weight.n;
  const int depth = PieceDepth(p.packing);
  const bool half = p.packing == Packing::kHalf;
  // Integers are exact in TensorFloat32: what scales a whole column stays out of them.
  const bool integers = p.packing != Packing::kHalf && p.weight.columns_per_scale != 0;
  const int64_t padded = p.pieces_per_row * depth;
  const auto value = [&](int64_t k) { return p.weight.At(k, column) * Gamma(p, k); };  // in float32
  const auto add = [](double a, double b) { return a + b; };
  int exponent = 0;
  // A centred row times a constant column is 0. So a column whose mean is not small, as zero points make
  // them, goes without it: else products with a row's mean, much larger than the result, would have to cancel
  // in the sums.
  float offset = 0;
  if (half) {
    if (p.centred) {
      double sum = 0, magnitude = 0;
      if (inside)
        for (int64_t k = lane; k < p.weight.k; k += kLanes) sum += value(k), magnitude += fabsf(value(k));
      sum = ColumnReduce<double>(sum, shared, lane, c, add);
      magnitude = ColumnReduce<double>(magnitude, shared, lane, c, add);
      if (fabs(sum) > 0.25 * magnitude && magnitude < INFINITY)
        offset = static_cast<float>(sum / static_cast<double>(p.weight.k));
    }
    double largest = 0;
    if (inside)
      for (int64_t k = lane; k < p.weight.k; k += kLanes) {
        const float v = fabsf(value(k) - offset);
        if (isfinite(v)) largest = fmax(largest, static_cast<double>(v));
      }
    largest =
        ColumnReduce<double>(largest, shared, lane, c, [](double a, double b) { return a > b ? a : b; });
    if (largest > 0) {
      int e;
      frexp(largest, &e);
      exponent = e - kTopExponent;
    }
  }
  const bool widened = p.packing == Packing::kInt8;
  if (widened) exponent = FactorExponent(p, shared);
  const auto factor = [&](int64_t k) { return RoundedTo(p.t, ldexpf(Gamma(p, k), -exponent)); };
  const int widening = widened && p.t == DType::kBFloat16 ? kBFloat16WideningExponent : 0;
  if (widened && blockIdx.x == 0)
    for (int64_t k = threadIdx.x; k < padded; k += kThreads) {
      Store(p.factors + k / depth * kFactorBytes + FactorOffset(static_cast<int>(k % depth)), p.t, 0,
            k < p.weight.k ? factor(k) : 0.0f);
    }
  double sum = 0, constant = 0;
  char* pieces = p.pieces + blockIdx.x * p.pieces_per_row * PieceBytes(p.packing);
  for (int64_t k = lane; k < padded; k += kLanes) {
    const bool there = inside && k < p.weight.k;
    const int in_piece = static_cast<int>(k % depth);
    char* piece = pieces + k / depth * PieceBytes(p.packing);
    if (half) {
      const float v = there ? ldexpf(value(k) - offset, -exponent) : 0.0f;
      void* target = piece + SwizzledOffset(c, in_piece * 2);
      Store(target, p.t, 0, v);
      sum += Vector{target, p.t}.At(0);
    } else if (p.packing == Packing::kTf32) {
      const float v = !there ? 0.0f : integers ? p.weight.Integer(k, column) : p.weight.At(k, column);
      Store(piece + SwizzledOffset(c, in_piece * 4), DType::kFloat, 0, PackTf32(v));
    } else {
      const int q = there ? static_cast<int>(p.weight.w.At(p.weight.Index(k, column))) : 0;
      if (widened) {
        piece[Int8Offset(c, in_piece)] = static_cast<char>(q + 128);
        sum += there ? RoundedTo(p.t, static_cast<float>(q) * ldexpf(factor(k), -widening)) : 0.0f;
      } else {
        piece[SwizzledOffset(c, in_piece)] = static_cast<char>(q);
      }
    }
    if (there && p.beta.data) constant += static_cast<double>(p.weight.At(k, column)) * p.beta.At(k);
  }
  sum = ColumnReduce<double>(sum, shared, lane, c, add);
  constant = ColumnReduce<double>(constant, shared, lane, c, add);
  if (lane != 0) return;
  Column out{};
  if (inside) {
    if (p.bias.data) constant += p.bias.At(column);
    const double scale =
        integers ? static_cast<double>(p.weight.scale.At(column / p.weight.columns_per_scale)) : 1.0;
    out.scale = static_cast<float>(ldexp(scale, exponent + widening));
    out.column_sum = static_cast<float>(ldexp(scale * sum, exponent + widening));
    out.constant = static_cast<float>(constant);
  }
  p.columns[column] = out;
}

// Launched after PackKernel: a kernel that reads weights before it waits for the one before then never meets
// weights that are still on their way.
__global__ void FenceKernel() {}

}  // namespace

size_t PackedBytes(const Problem& p, Packing packing) {
  if (packing == Packing::kNone) return 0;
  return static_cast<size_t>(WeightBytes(p, packing) + ColumnBytes(p) + FactorBytes(p, packing));
}

cudaError_t Pack(const Problem& p, const Operands& o, Packing packing, void* packed, cudaStream_t stream) {
  if (packing == Packing::kNone || p.n == 0) return cudaSuccess;
  Params params{};
  params.weight = MakeWeight(p, o);
  // Rows that are quantised or packed as TensorFloat32 bring gamma and beta along.
  if (packing == Packing::kHalf || packing == Packing::kInt8) {
    params.gamma = {o.gamma, p.gamma_type};
    params.beta = {o.beta, p.beta_type};
  }
  params.bias = {o.bias, p.bias_type};
  params.packing = packing;
  params.centred = p.norm == NormType::kLayerNorm;
  params.t = p.t;
  params.pieces_per_row = PiecesPerRow(p, packing);
  params.pieces = static_cast<char*>(packed);
  params.columns = reinterpret_cast<Column*>(params.pieces + WeightBytes(p, packing));
  params.factors = reinterpret_cast<char*>(params.columns) + ColumnBytes(p);
  PackKernel<<<static_cast<unsigned>(PieceRows(p)), kThreads, 0, stream>>>(params);
  FenceKernel<<<1, 1, 0, stream>>>();
  return cudaGetLastError();
}

}  // namespace qkvgemm::cuda
