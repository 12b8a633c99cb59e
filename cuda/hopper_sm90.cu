// Any number of rows on Hopper: which tiles there are, and their launches.
#include "cuda/hopper.cuh"

namespace qkvgemm::cuda {
namespace {

using namespace hopper;

using Encode = decltype(&cuTensorMapEncodeTiled);
Encode GetEncode() {
  static const Encode encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult result;
    if (cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault,
                                         &result) != cudaSuccess)
      return Encode{nullptr};
    return reinterpret_cast<Encode>(function);
  }();
  return encode;
}

// [rows, columns] with `pitch` elements from row to row, in boxes of [box_rows, 128 bytes].
cudaError_t MakeMap(CUtensorMap* map, CUtensorMapDataType type, int element_bytes, const void* data,
                    int64_t columns, int64_t rows, int64_t pitch, int box_rows) {
  const cuuint64_t dims[] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(rows)};
  const cuuint64_t strides[] = {static_cast<cuuint64_t>(pitch * element_bytes)};
  const cuuint32_t box[] = {static_cast<cuuint32_t>(128 / element_bytes), static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[] = {1, 1};
  const Encode encode = GetEncode();
  if (encode == nullptr) return cudaErrorNotSupported;
  return encode(map, type, 2, const_cast<void*>(data), dims, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS
             ? cudaSuccess
             : cudaErrorInvalidValue;
}

template <typename C>
cudaError_t MakeMaps(const Params& p, Maps* maps) {
  constexpr auto kType = std::is_same_v<typename C::T, float>    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT32
                         : std::is_same_v<typename C::T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                                 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  if (const cudaError_t e = MakeMap(&maps->rows, C::kInt8Rows ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : kType,
                                    sizeof(typename C::Element), p.rows, p.k, p.m, p.pitch,
                                    C::kTokens / (C::kCluster ? p.cluster_columns : 1)))
    return e;
  for (int s = 0; p.copy_stores && s < p.splits; ++s) {
    const int width = p.end[s] - (s ? p.end[s - 1] : 0);
    if (p.y[s] == nullptr) continue;
    if (const cudaError_t e = MakeMap(&maps->y[s], kType, 2, p.y[s], width, p.m, width, C::kChunkRows))
      return e;
  }
  return cudaSuccess;
}

// Goes before a product whose blocks share the statistics out, as the kernel that takes them elsewhere does.
__global__ void ClearKernel(uint32_t* counters, int count) {
  LetNextStart();
  WaitForPrevious();
  for (int i = threadIdx.x; i < count; i += blockDim.x) counters[i] = 0;
}
cudaError_t ClearCounters(const Params& p, cudaStream_t stream) {
  LaunchShape shape{.grid = 1, .block = 128};
  shape.dependent = true;
  return Launch(ClearKernel, shape, stream, p.counters, 1 + p.tiles_rows);
}

template <typename C>
struct Entry {
  static cudaError_t Prepare() {
    return cudaFuncSetAttribute(HopperKernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                C::kSharedBytes);
  }
  static cudaError_t Run(Params p, int multiprocessors, cudaStream_t stream) {
    p.tiles_rows = static_cast<int>(CeilDiv(p.m, C::kTokens));
    p.tiles_columns = static_cast<int>(CeilDiv(p.n, p.tile_columns));
    p.evict_first = p.tiles_rows == 1;
    p.copy_stores = C::kStaged && p.vector_stores && !IsNarrow(p.tile_columns);
    for (int s = 0; s + 1 < p.splits; ++s) p.copy_stores = p.copy_stores && p.end[s] % kPieceColumns == 0;
    Maps maps;
    if (const cudaError_t e = MakeMaps<C>(p, &maps)) return e;
    if (p.counters != nullptr)
      if (const cudaError_t e = ClearCounters(p, stream)) return e;
    const int tiles = p.tiles_rows * p.tiles_columns;
    LaunchShape shape{.grid = static_cast<unsigned>(std::min(tiles, multiprocessors)), .block = C::kThreads};
    shape.shared_bytes = C::kSharedBytes;
    if constexpr (C::kCluster)
      shape.grid = static_cast<unsigned>(tiles), shape.cluster = p.cluster_columns * p.cluster_rows;
    if constexpr (C::kParts) shape.grid = static_cast<unsigned>(tiles * p.k_parts), shape.cluster = p.k_parts;
    shape.dependent = true;
    return Launch(HopperKernel<C>, shape, stream, maps, p);
  }
};

// The tiles: groups of 64 columns, and rows. cuda/plan.cc has the same list, and narrow ones, which are
// served by the kernel of as many groups.
// clang-format off
#define QKV_HOPPER_TILES(F)                                                \
  F(1, 16) F(2, 16) F(3, 16) F(1, 32) F(2, 32) F(3, 32) F(1, 64) F(2, 64)  \
  F(3, 64) F(1, 96) F(2, 96) F(2, 128) F(3, 128) F(3, 192) F(2, 256) F(3, 256)
// clang-format on

struct Key {
  int groups, tokens;
  Blocks blocks;
  bool operator==(const Key&) const = default;
};

// Calls visit(key, entry) for each tile of a type and packing, until one fails.
template <typename T, Packing kPacking, typename Visit>
cudaError_t Each(const Visit& visit) {
  cudaError_t result = cudaSuccess;
#define QKV_VISIT_AS(groups, tokens, blocks) \
  if (result == cudaSuccess)                 \
    result = visit(Key{groups, tokens, blocks}, Entry<Config<T, kPacking, groups, tokens, blocks>>{});
#define QKV_VISIT(groups, tokens)                                                                        \
  if constexpr (HasHopperTile(kPacking, groups, tokens)) QKV_VISIT_AS(groups, tokens, Blocks::kAlone)    \
  if constexpr (HasClusterTile(kPacking, groups, tokens)) QKV_VISIT_AS(groups, tokens, Blocks::kCluster) \
  if constexpr (MostParts(kPacking, groups, tokens) > 1) QKV_VISIT_AS(groups, tokens, Blocks::kParts)
  QKV_HOPPER_TILES(QKV_VISIT)
#undef QKV_VISIT
#undef QKV_VISIT_AS
  return result;
}

template <typename T_>
struct Type {
  using T = T_;
};
template <Packing kPacking>
struct Form {
  static constexpr Packing kValue = kPacking;
};

template <typename Visit>
cudaError_t EachOfAll(const Visit& visit) {
  if (const cudaError_t e = visit(Type<float>{}, Form<Packing::kTf32>{})) return e;
  if (const cudaError_t e = visit(Type<float>{}, Form<Packing::kInt8Activations>{})) return e;
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kHalf>{})) return e;
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kInt8>{})) return e;
  if (const cudaError_t e = visit(Type<__half>{}, Form<Packing::kInt8Activations>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kHalf>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kInt8>{})) return e;
  if (const cudaError_t e = visit(Type<__nv_bfloat16>{}, Form<Packing::kInt8Activations>{})) return e;
  return cudaSuccess;
}

}  // namespace

cudaError_t PrepareHopper() {
  return EachOfAll([](auto type, auto form) {
    return Each<typename decltype(type)::T, decltype(form)::kValue>(
        [](const Key&, auto entry) { return entry.Prepare(); });
  });
}

cudaError_t RunHopper(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                      cudaStream_t stream) {
  int multiprocessors = 0;
  if (const cudaError_t e = GetMultiprocessors(&multiprocessors)) return e;
  const Key wanted{TileGroups(plan.tile_columns), plan.tile_rows,
                   plan.k_parts > 1                               ? Blocks::kParts
                   : plan.cluster_columns * plan.cluster_rows > 1 ? Blocks::kCluster
                                                                  : Blocks::kAlone};
  Params params{product};
  params.tile_columns = plan.tile_columns, params.k_parts = plan.k_parts;
  params.cluster_columns = plan.cluster_columns, params.cluster_rows = plan.cluster_rows;
  params.norm =
      ComputesStatistics(plan, packing) || product.counters != nullptr ? problem.norm : NormType::kNone;
  params.epsilon = problem.epsilon;
  bool found = false;
  const cudaError_t result = EachOfAll([&](auto type, auto form) {
    using T = typename decltype(type)::T;
    constexpr Packing kPacking = decltype(form)::kValue;
    if (kTypeOf<T> != problem.t || kPacking != packing) return cudaSuccess;
    return Each<T, kPacking>([&](const Key& key, auto entry) {
      if (!(key == wanted)) return cudaSuccess;
      found = true;
      return entry.Run(params, multiprocessors, stream);
    });
  });
  return result != cudaSuccess ? result : found ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace qkvgemm::cuda
