// Any number of rows on mma.sync (sm_75 and later; float16 and int8 alone before sm_80).
//
// A block computes one tile: columns of W are the rows of the matrix instruction and rows of the input its
// columns, so that int8 weights can be widened in registers. Pieces of W and rows of the input come through a
// ring of stages in shared memory, 128 bytes of the rows' k at a time; results are turned round (halves in
// registers, floats on their way into shared memory) and leave through shared memory too.
#include "cuda/elements.cuh"
#include "cuda/families.h"
#include "cuda/launch.h"
#include "cuda/mma.cuh"
#include "cuda/output.cuh"
#include "cuda/shared.cuh"
#include "cuda/widen.cuh"

namespace qkvgemm::cuda {
namespace {

struct Params : Product {
  int64_t row_bytes;  // of the input
  int tiles_rows, tiles_columns;
};

// A tile of kColumns columns and kTokens rows of the input, cut among warps of kWarpColumns by kWarpTokens.
template <typename T_, Packing kPacking_, int kColumns_, int kTokens_, int kWarpColumns_, int kWarpTokens_>
struct Config {
  using T = T_;
  static constexpr Packing kPacking = kPacking_;
  static constexpr bool kWiden = kPacking_ == Packing::kInt8;
  static constexpr bool kInt8Rows = kPacking_ == Packing::kInt8Activations;
  using Element = std::conditional_t<kInt8Rows, int8_t, T>;
  using Sum = typename Mma<Element>::Accumulator;
  static constexpr int kColumns = kColumns_, kTokens = kTokens_;
  static constexpr int kWarpColumns = kWarpColumns_, kWarpTokens = kWarpTokens_;
  static constexpr int kColumnWarps = kColumns / kWarpColumns, kTokenWarps = kTokens / kWarpTokens;
  static constexpr int kThreads = kColumnWarps * kTokenWarps * 32;
  static constexpr int kGroups = kWarpColumns / 16,
                       kBlocks = kWarpTokens / 8;  // matrix instructions of a warp
  static constexpr int kPieceBytes = kWiden ? 4096 : 8192;
  static constexpr int kRowsBytes = kTokens * kPieceRowBytes;
  static constexpr int kWeightBytes = kColumns / kPieceColumns * kPieceBytes;
  static constexpr int kStageBytes = kRowsBytes + kWeightBytes + (kWiden ? kFactorBytes : 0);
  static constexpr int kStages = 3;
  // Of a thread, for each stage.
  static constexpr int kPieceCopies = kPieceBytes / (kThreads * 16),
                       kRowCopies = kRowsBytes / (kThreads * 16);
  static constexpr int kOutBytes = static_cast<int>(sizeof(T));  // of a result
  static constexpr int kOutPitch = kColumns * kOutBytes + 16;    // the 16 against bank conflicts
  static constexpr int kSharedBytes = kStages * kStageBytes;
  static_assert(kOutPitch * kTokens <= kSharedBytes);
};

// An 8 by 8 matrix of 16-bit elements, of which lane (g, t) holds row g, columns 2 t and 2 t + 1.
__device__ __forceinline__ uint32_t Transpose(uint32_t v) {
  uint32_t r;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(r) : "r"(v));
  return r;
}

template <typename C>
class Block {
 public:
  __device__ __forceinline__ Block(const Params& p, char* shared) : p_(p), shared_(SharedAddress(shared)) {
    // Eight tiles of rows at a time, then along the columns: what runs together shares both operands in the
    // L2 cache.
    constexpr int kBand = 8;
    const int tile = blockIdx.x, band = tile / (kBand * p.tiles_columns),
              rest = tile - band * kBand * p.tiles_columns;
    const int height = min(kBand, p.tiles_rows - band * kBand);
    column0_ = rest / height * C::kColumns;
    row0_ = (band * kBand + rest % height) * C::kTokens;
  }

  __device__ __forceinline__ void Run() {
    LetNextStart();
    // Weights never depend on the kernel before. Everything else does.
#pragma unroll
    for (int i = 0; i < C::kStages - 1; ++i) {
      if (i >= p_.pieces_per_row) continue;
      LoadWeights(i, i);
      FinishWeights();
    }
    WaitForPrevious();
#pragma unroll
    for (int i = 0; i < C::kStages - 1; ++i) {
      if (i < p_.pieces_per_row) {
        LoadRows(i, i);
        row_copies_.Finish();
      }
      CommitCopies();
    }
    int stage = 0;
    for (int kb = 0; kb < p_.pieces_per_row; ++kb) {
      WaitForCopies<C::kStages - 2>();
      __syncthreads();
      // Into the stage that was computed last, with which every warp is done.
      const int free = stage == 0 ? C::kStages - 1 : stage - 1;
      const bool more = kb + C::kStages - 1 < p_.pieces_per_row;
      if (more) {
        LoadWeights(kb + C::kStages - 1, free);
        LoadRows(kb + C::kStages - 1, free);
      }
      CommitCopies();
      Multiply(shared_ + stage * C::kStageBytes);
      if (more) {
        FinishWeights();
        row_copies_.Finish();
      }
      stage = stage == C::kStages - 1 ? 0 : stage + 1;
    }
    __syncthreads();  // the stages become the place of the results
    TurnRound();
    __syncthreads();
    Write();
  }

 private:
  __device__ __forceinline__ void LoadWeights(int kb, int stage) {
    const uint32_t target = shared_ + stage * C::kStageBytes + C::kRowsBytes;
#pragma unroll
    for (int i = 0; i < C::kColumns / kPieceColumns; ++i) {
      // Columns behind the last piece are computed from it, and not written.
      const int row = min(column0_ / kPieceColumns + i, p_.piece_rows - 1);
      const char* piece = static_cast<const char*>(p_.weights) +
                          (static_cast<int64_t>(row) * p_.pieces_per_row + kb) * C::kPieceBytes;
#pragma unroll
      for (int copy = 0; copy < C::kPieceCopies; ++copy) {
        const int byte = (copy * C::kThreads + static_cast<int>(threadIdx.x)) * 16;
        weight_copies_.Start(i * C::kPieceCopies + copy, target + i * C::kPieceBytes + byte, piece + byte,
                             true);
      }
    }
    if constexpr (C::kWiden) {
      const int byte = static_cast<int>(threadIdx.x) * 16;
      if (byte < kFactorBytes)
        factor_copies_.Start(
            0, target + C::kWeightBytes + byte,
            static_cast<const char*>(p_.factors) + static_cast<int64_t>(kb) * kFactorBytes + byte, true);
    }
  }
  __device__ __forceinline__ void FinishWeights() const {
    weight_copies_.Finish();
    if (C::kWiden && threadIdx.x * 16 < kFactorBytes) factor_copies_.Finish();
  }
  // Chunk i of row r lies at chunk i ^ r % 8 of its 128 bytes, as in a piece.
  __device__ __forceinline__ void LoadRows(int kb, int stage) {
    const int chunk = threadIdx.x % 8;
    const int64_t at = static_cast<int64_t>(kb) * kPieceRowBytes + chunk * 16;
    const uint32_t target = shared_ + stage * C::kStageBytes;
#pragma unroll
    for (int copy = 0; copy < C::kRowCopies; ++copy) {
      const int row = copy * (C::kThreads / 8) + threadIdx.x / 8;
      const bool there = row0_ + row < p_.m && at < p_.row_bytes;
      const int64_t from = there ? (row0_ + row) * p_.row_bytes + at : 0;
      row_copies_.Start(copy, target + row * kPieceRowBytes + ((chunk ^ (row & 7)) * 16),
                        static_cast<const char*>(p_.rows) + from, there);
    }
  }

  __device__ __forceinline__ void Multiply(uint32_t stage) {
    // Rows of each matrix that ldmatrix reads, and the chunk from which the swizzle starts.
    const int row = lane_ % 8;
    const uint32_t rows = stage + (WarpToken() + lane_ / 16 * 8 + row) * kPieceRowBytes;
    const uint32_t weights = stage + C::kRowsBytes + WarpColumn() / kPieceColumns * C::kPieceBytes;
    const int in_piece = WarpColumn() % kPieceColumns;
    const uint32_t columns = weights + (in_piece + lane_ / 8 % 2 * 8 + row) * kPieceRowBytes;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      uint32_t a[C::kGroups][2][4];  // of two steps of 32 bytes
      [[maybe_unused]] uint32_t factors[4];
      if constexpr (C::kWiden)
        LoadVector(factors, stage + C::kRowsBytes + C::kWeightBytes + (lane_ % 4 * 2 + h) * 16);
#pragma unroll
      for (int i = 0; i < C::kGroups; ++i) {
        if constexpr (C::kWiden) {
          uint32_t w[4];
          LoadVector(w, weights + (((in_piece / 16 + i) * 2 + h) * 32 + lane_) * 16);
          WidenSteps<typename C::T>(w, factors, a[i][0], a[i][1]);
        } else {
#pragma unroll
          for (int s = 0; s < 2; ++s)
            LoadMatrices(a[i][s],
                         columns + i * 16 * kPieceRowBytes + (((h * 2 + s) * 2 + lane_ / 16) ^ row) * 16);
        }
      }
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t b[C::kBlocks / 2][4];
#pragma unroll
        for (int j = 0; j < C::kBlocks / 2; ++j)
          LoadMatrices(b[j], rows + j * 16 * kPieceRowBytes + (((h * 2 + s) * 2 + lane_ / 8 % 2) ^ row) * 16);
#pragma unroll
        for (int i = 0; i < C::kGroups; ++i)
#pragma unroll
          for (int j = 0; j < C::kBlocks; ++j)
            Mma<typename C::Element>::Run(sums_[i][j], a[i][s], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
      }
    }
  }

  // Results as T into shared memory, row by row.
  __device__ __forceinline__ void TurnRound() const {
    using T = typename C::T;
    const int g = lane_ / 4, t = lane_ % 4;
    Column columns[C::kGroups][2];
#pragma unroll
    for (int i = 0; i < C::kGroups; ++i)
#pragma unroll
      for (int e = 0; e < 2; ++e)
        columns[i][e] = p_.columns[min(column0_ + WarpColumn() + i * 16 + e * 8 + g, p_.n - 1)];
#pragma unroll
    for (int j = 0; j < C::kBlocks; ++j) {
      const int token = WarpToken() + j * 8;
      RowStatistics low{0, 1}, high{0, 1};
      if (p_.statistics)
        low = p_.statistics[row0_ + token + t * 2], high = p_.statistics[row0_ + token + t * 2 + 1];
      const uint32_t target = shared_ + token * C::kOutPitch + WarpColumn() * C::kOutBytes;
#pragma unroll
      for (int i = 0; i < C::kGroups; ++i)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const auto* d = sums_[i][j] + e * 2;
          const float even = Finish(columns[i][e], static_cast<float>(d[0]), low);
          const float odd = Finish(columns[i][e], static_cast<float>(d[1]), high);
          const uint32_t first = target + (i * 16 + e * 8) * C::kOutBytes;
          if constexpr (std::is_same_v<T, float>) {
            StoreWord(first + t * 2 * C::kOutPitch + g * 4, __float_as_uint(even));
            StoreWord(first + (t * 2 + 1) * C::kOutPitch + g * 4, __float_as_uint(odd));
          } else {
            StoreWord(first + g * C::kOutPitch + t * 4, Transpose(Pack2<T>(even, odd)));
          }
        }
    }
  }

  __device__ __forceinline__ void Write() const {
    using T = typename C::T;
    constexpr int kChunkColumns = 16 / C::kOutBytes, kRowChunks = C::kColumns / kChunkColumns;
    static_assert(C::kThreads % kRowChunks == 0);
    const int chunk = threadIdx.x % kRowChunks, column = column0_ + chunk * kChunkColumns;
    if (column >= p_.n) return;
    const OutputColumn<T> y(p_, column);
    for (int token = threadIdx.x / kRowChunks; token < C::kTokens; token += C::kThreads / kRowChunks) {
      const int row = row0_ + token;
      if (row >= p_.m) return;
      uint32_t v[4];
      LoadVector(v, shared_ + token * C::kOutPitch + chunk * 16);
      if (p_.vector_stores) {
        if (y.first) *reinterpret_cast<uint4*>(y.Row(row)) = {v[0], v[1], v[2], v[3]};
      } else {
        StoreElements<T>(p_, v, row, column);
      }
    }
  }

  // Where the warp's part of the tile begins.
  __device__ __forceinline__ int WarpColumn() const { return warp_ % C::kColumnWarps * C::kWarpColumns; }
  __device__ __forceinline__ int WarpToken() const { return warp_ / C::kColumnWarps * C::kWarpTokens; }

  const Params& p_;
  const uint32_t shared_;
  const int warp_ = threadIdx.x / 32, lane_ = threadIdx.x % 32;
  int column0_, row0_;
  typename C::Sum sums_[C::kGroups][C::kBlocks][4] = {};
  Copies<C::kColumns / kPieceColumns * C::kPieceCopies> weight_copies_;
  Copies<1> factor_copies_;
  Copies<C::kRowCopies> row_copies_;
};

template <typename C>
__global__ void __launch_bounds__(C::kThreads) TileKernel(const __grid_constant__ Params p) {
  extern __shared__ __align__(128) char shared[];
  Block<C>(p, shared).Run();
}

template <typename C>
struct Entry {
  static bool Matches(const Plan& plan, Packing packing, DType t) {
    return plan.tile_columns == C::kColumns && plan.tile_rows == C::kTokens && packing == C::kPacking &&
           t == kTypeOf<typename C::T>;
  }
  static cudaError_t Prepare(int limit) {
    if (C::kSharedBytes > limit) return cudaSuccess;  // no plan names it there
    return cudaFuncSetAttribute(TileKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize, C::kSharedBytes);
  }
  static cudaError_t Run(Params p, cudaStream_t stream) {
    p.tiles_rows = static_cast<int>(CeilDiv(p.m, C::kTokens));
    p.tiles_columns = static_cast<int>(CeilDiv(p.n, C::kColumns));
    LaunchShape shape{.grid = static_cast<unsigned>(p.tiles_rows) * static_cast<unsigned>(p.tiles_columns),
                      .block = C::kThreads};
    shape.shared_bytes = C::kSharedBytes;
    shape.dependent = true;
    return Launch(TileKernel<C>, shape, stream, p);
  }
};

// Calls visit(Entry<...>) for each kernel until one returns false.
template <typename T, Packing kPacking, typename Visit>
bool EachTile(const Visit& visit) {
  return visit(Entry<Config<T, kPacking, 64, 32, 16, 32>>{}) &&
         visit(Entry<Config<T, kPacking, 64, 64, 32, 32>>{}) &&
         visit(Entry<Config<T, kPacking, 128, 64, 64, 32>>{}) &&
         visit(Entry<Config<T, kPacking, 128, 128, 64, 32>>{});
}
template <typename T, typename Visit>
bool EachPacking(const Visit& visit) {
  if constexpr (std::is_same_v<T, float>)
    return EachTile<T, Packing::kTf32>(visit) && EachTile<T, Packing::kInt8Activations>(visit);
  else
    return EachTile<T, Packing::kHalf>(visit) && EachTile<T, Packing::kInt8>(visit) &&
           EachTile<T, Packing::kInt8Activations>(visit);
}
template <typename Visit>
void Each(const Visit& visit) {
  if (EachPacking<__half>(visit) && EachPacking<__nv_bfloat16>(visit)) EachPacking<float>(visit);
}

}  // namespace

cudaError_t PrepareTile() {
  int device = 0, limit = 0;
  if (const cudaError_t e = cudaGetDevice(&device)) return e;
  if (const cudaError_t e = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
    return e;
  cudaError_t result = cudaSuccess;
  Each([&](auto entry) { return (result = entry.Prepare(limit)) == cudaSuccess; });
  return result;
}

cudaError_t RunTile(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                    cudaStream_t stream) {
  const Params p{product, product.pitch * RowElementBytes(problem, plan.rows), 0, 0};
  cudaError_t result = cudaErrorInvalidValue;
  Each([&](auto entry) {
    if (!entry.Matches(plan, packing, problem.t)) return true;
    result = entry.Run(p, stream);
    return false;
  });
  return result;
}

}  // namespace qkvgemm::cuda
