// Few rows: which tiles there are, and their launches.
#include "cuda/stream.cuh"

namespace qkvgemm::cuda {
namespace {

using namespace stream;

template <typename C>
cudaError_t RunConfig(const Params& p, cudaStream_t stream) {
  LaunchShape shape{.grid = static_cast<unsigned>(CeilDiv(p.n, C::kColumns)), .block = kThreads};
  shape.dependent = true;
  return Launch(StreamKernel<C>, shape, stream, p);
}

template <typename T, Packing kPacking, int kTokens>
cudaError_t RunColumns(const Plan& plan, const Params& p, cudaStream_t stream) {
  switch (plan.tile_columns) {
    case 16:
      return RunConfig<Config<T, kPacking, 1, kTokens>>(p, stream);
    case 32:
      return RunConfig<Config<T, kPacking, 2, kTokens>>(p, stream);
    case 48:
      if constexpr (FitsTwice(kPacking, 48, kTokens)) {
        int multiprocessors = 0;
        if (const cudaError_t e = GetMultiprocessors(&multiprocessors)) return e;
        if (CeilDiv(p.n, 48) > multiprocessors)
          return RunConfig<Config<T, kPacking, 3, kTokens, 2>>(p, stream);
      }
      return RunConfig<Config<T, kPacking, 3, kTokens>>(p, stream);
    case 96:
      return RunConfig<Config<T, kPacking, 6, kTokens>>(p, stream);
    default:
      return cudaErrorInvalidValue;
  }
}

template <typename T, Packing kPacking>
cudaError_t RunRows(const Plan& plan, const Params& p, cudaStream_t stream) {
  return plan.tile_rows == 8 ? RunColumns<T, kPacking, 8>(plan, p, stream)
                             : RunColumns<T, kPacking, 16>(plan, p, stream);
}

template <typename T>
cudaError_t RunPacking(const Plan& plan, Packing packing, const Params& p, cudaStream_t stream) {
  switch (packing) {
    case Packing::kHalf:
      return RunRows<T, Packing::kHalf>(plan, p, stream);
    case Packing::kInt8:
      return RunRows<T, Packing::kInt8>(plan, p, stream);
    case Packing::kInt8Activations:
      return RunRows<T, Packing::kInt8Activations>(plan, p, stream);
    case Packing::kNone:
    case Packing::kTf32:
      break;
  }
  return cudaErrorInvalidValue;
}
template <>
cudaError_t RunPacking<float>(const Plan& plan, Packing packing, const Params& p, cudaStream_t stream) {
  if (packing == Packing::kTf32 && plan.tile_rows == 1)
    return RunColumns<float, Packing::kTf32, 1>(plan, p, stream);
  return packing == Packing::kTf32 ? RunRows<float, Packing::kTf32>(plan, p, stream)
                                   : RunRows<float, Packing::kInt8Activations>(plan, p, stream);
}

}  // namespace

cudaError_t RunStream(const Problem& problem, const Plan& plan, Packing packing, const Product& product,
                      cudaStream_t stream) {
  if (product.m > plan.tile_rows) return cudaErrorInvalidValue;
  const Params p{product, product.pitch * RowElementBytes(problem, plan.rows),
                 ComputesStatistics(plan, packing) ? problem.norm : NormType::kNone, problem.epsilon};
  return problem.t == DType::kFloat     ? RunPacking<float>(plan, packing, p, stream)
         : problem.t == DType::kFloat16 ? RunPacking<__half>(plan, packing, p, stream)
                                        : RunPacking<__nv_bfloat16>(plan, packing, p, stream);
}

}  // namespace qkvgemm::cuda
