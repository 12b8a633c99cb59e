// Any problem on any device: rows are normalised into float32 scratch, then multiplied tile by tile.
#include "cuda/elements.cuh"
#include "cuda/families.h"

namespace qkvgemm::cuda {
namespace {

constexpr int kNormThreads = 256;

struct NormParams {
  Vector x, gamma, beta;  // data null: absent
  float* rows;            // [m, k]
  void* norm;             // T [m, k], or null
  int64_t k;
  NormType type;
  float epsilon;
  bool activation_quant;
};

template <typename Combine>
__device__ float BlockReduce(float value, Combine combine) {
  __shared__ float parts[kNormThreads / 32];
  for (int o = 16; o > 0; o /= 2) value = combine(value, __shfl_xor_sync(~0u, value, o));
  __syncthreads();
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (int w = 1; w < kNormThreads / 32; ++w) value = combine(value, parts[w]);
  return value;
}

__device__ float BlockSum(float value) {
  return BlockReduce(value, [](float a, float b) { return a + b; });
}

// One block a row; two passes over it, the second corrected by the residual of the first (Chan, Golub,
// LeVeque 1983).
__global__ void __launch_bounds__(kNormThreads) NormalizeKernel(const NormParams p) {
  const int64_t first = static_cast<int64_t>(blockIdx.x) * p.k;
  float* row = p.rows + first;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < p.k; i += kNormThreads) {
    const float v = p.x.At(first + i);
    row[i] = v;
    sum += v;
  }
  if (p.type != NormType::kNone) {
    const float count = static_cast<float>(p.k);
    const bool centred = p.type == NormType::kLayerNorm;
    const float mean = centred ? BlockSum(sum) / count : 0.0f;
    float squares = 0, rest = 0;
    for (int64_t i = threadIdx.x; i < p.k; i += kNormThreads) {
      const float d = row[i] - mean;
      squares = fmaf(d, d, squares);
      rest += d;
    }
    const float residual = centred ? BlockSum(rest) / count : 0.0f;
    const float square = BlockSum(squares) / count - residual * residual;
    // fmaxf would turn NaN into 0.
    const float spread = (square < 0.0f ? 0.0f : square) + p.epsilon;
    const float rstd = spread == 0.0f ? 0.0f : 1.0f / sqrtf(spread);
    for (int64_t i = threadIdx.x; i < p.k; i += kNormThreads) {
      float v = fmaf(row[i] - mean, rstd, -residual * rstd);
      if (p.gamma.data) v *= p.gamma.At(i);
      if (p.beta.data) v += p.beta.At(i);
      row[i] = v;
      if (p.norm) Store(p.norm, p.x.type, first + i, v);
    }
  }
  if (p.activation_quant) {
    float largest = 0;
    bool finite = true;
    for (int64_t i = threadIdx.x; i < p.k; i += kNormThreads) {
      finite = finite && isfinite(row[i]);
      largest = fmaxf(largest, fabsf(row[i]));
    }
    largest = BlockReduce(finite ? largest : INFINITY, [](float a, float b) { return fmaxf(a, b); });
    const float scale = largest / 127.0f, inverse = 127.0f / largest;
    if (largest > 0.0f && isfinite(largest) && scale > 0.0f && isfinite(inverse)) {
      for (int64_t i = threadIdx.x; i < p.k; i += kNormThreads) row[i] = rintf(row[i] * inverse) * scale;
    }
  }
}

constexpr int kTile = 64, kDepth = 16, kThreads = 256;

struct ProductParams {
  const float* rows;  // [m, k]
  Weight weight;
  Vector bias;  // data null: absent
  void* y;      // T [m, width]
  DType t;
  int64_t m, k, first, width;  // columns [first, first + width) of W
};

// A block computes 64 x 64 results, a thread 4 x 4 of them, 16 apart.
__global__ void __launch_bounds__(kThreads) ProductKernel(const ProductParams p) {
  __shared__ float a[kDepth][kTile + 1], b[kDepth][kTile + 1];
  const int64_t m0 = static_cast<int64_t>(blockIdx.y) * kTile, n0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  float sums[4][4] = {};
  for (int64_t k0 = 0; k0 < p.k; k0 += kDepth) {
    for (int i = threadIdx.x; i < kDepth * kTile; i += kThreads) {
      const int64_t row = m0 + i / kDepth, ka = k0 + i % kDepth;
      a[i % kDepth][i / kDepth] = row < p.m && ka < p.k ? p.rows[row * p.k + ka] : 0.0f;
      // Neighbouring threads read neighbouring elements of W, whichever way it lies.
      const int kb = p.weight.transposed ? i % kDepth : i / kTile,
                nb = p.weight.transposed ? i / kDepth : i % kTile;
      b[kb][nb] = k0 + kb < p.k && n0 + nb < p.width ? p.weight.At(k0 + kb, p.first + n0 + nb) : 0.0f;
    }
    __syncthreads();
    for (int k = 0; k < kDepth; ++k) {
      for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) sums[i][j] = fmaf(a[k][ty + 16 * i], b[k][tx + 16 * j], sums[i][j]);
    }
    __syncthreads();
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int64_t row = m0 + ty + 16 * i, column = n0 + tx + 16 * j;
      if (row >= p.m || column >= p.width) continue;
      const float bias = p.bias.data ? p.bias.At(p.first + column) : 0.0f;
      Store(p.y, p.t, row * p.width + column, sums[i][j] + bias);
    }
  }
}

}  // namespace

size_t GenericScratchBytes(const Problem& p) { return static_cast<size_t>(p.m * p.k) * sizeof(float); }

cudaError_t RunGeneric(const Problem& p, const Operands& o, void* scratch, cudaStream_t stream) {
  auto* rows = static_cast<float*>(scratch);
  if (p.k > 0) {
    // A grid has at most 2^31 - 1 blocks along x.
    constexpr int64_t kRowsPerLaunch = int64_t{1} << 30;
    const auto bytes = static_cast<int64_t>(SizeOf(p.t));
    for (int64_t m0 = 0; m0 < p.m; m0 += kRowsPerLaunch) {
      const int64_t count = p.m - m0 < kRowsPerLaunch ? p.m - m0 : kRowsPerLaunch, skipped = m0 * p.k;
      const NormParams norm{{static_cast<const char*>(o.input) + skipped * bytes, p.t},
                            {o.gamma, p.gamma_type},
                            {o.beta, p.beta_type},
                            rows + skipped,
                            o.norm ? static_cast<char*>(o.norm) + skipped * bytes : nullptr,
                            p.k,
                            p.norm,
                            p.epsilon,
                            p.activation_quant};
      NormalizeKernel<<<static_cast<unsigned>(count), kNormThreads, 0, stream>>>(norm);
      if (const cudaError_t error = cudaGetLastError()) return error;
    }
  }
  int64_t first = 0;
  for (int64_t s = 0; s < p.num_splits; first += p.splits[s], ++s) {
    if (p.splits[s] == 0 || o.y[s] == nullptr) continue;
    ProductParams product{rows,  MakeWeight(p, o), {o.bias, p.bias_type}, nullptr, p.t, 0, p.k,
                          first, p.splits[s]};
    // A grid has at most 65535 blocks along y.
    constexpr int64_t kRowsPerLaunch = int64_t{65535} * kTile;
    for (int64_t m0 = 0; m0 < p.m; m0 += kRowsPerLaunch) {
      product.rows = rows + m0 * p.k;
      product.y = static_cast<char*>(o.y[s]) + m0 * p.splits[s] * static_cast<int64_t>(SizeOf(p.t));
      product.m = p.m - m0 < kRowsPerLaunch ? p.m - m0 : kRowsPerLaunch;
      const dim3 grid(static_cast<unsigned>((p.splits[s] + kTile - 1) / kTile),
                      static_cast<unsigned>((product.m + kTile - 1) / kTile));
      ProductKernel<<<grid, kThreads, 0, stream>>>(product);
      if (const cudaError_t error = cudaGetLastError()) return error;
    }
  }
  return cudaSuccess;
}

}  // namespace qkvgemm::cuda
