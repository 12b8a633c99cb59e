// Many rows on Hopper: TMA, wgmma, warp specialisation, clusters of two that share W tiles, persistent.
#include <cuda.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

#include "wgmma.cuh"

namespace qkvgemm::cuda {
namespace {

constexpr int kBM = 128, kBK = 64, kConsumers = 2;
constexpr int kThreads = (kConsumers + 1) * 128;

struct Params {
  const float2* stats;  // mean, rstd of each row
  const float* col_const;
  const float* col_sum;
  void* y;
  int m, k, n, kblocks;
  int tiles_m, tiles_n;  // tiles_m counts pairs
  int rms;
};

__device__ __forceinline__ uint32_t Shared(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }
__device__ __forceinline__ void BarInit(uint32_t bar, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count));
}
__device__ __forceinline__ void BarExpect(uint32_t bar, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes) : "memory");
}
__device__ __forceinline__ void BarWait(uint32_t bar, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred p;\nLAB_WAIT:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n@p bra DONE;\nbra LAB_WAIT;\nDONE:\n}\n" ::"r"(bar),
      "r"(parity)
      : "memory");
}
__device__ __forceinline__ void BarArriveCluster(uint32_t bar, uint32_t cta) {
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}\n" ::"r"(bar),
      "r"(cta)
      : "memory");
}
__device__ __forceinline__ void TmaX(uint32_t dst, const CUtensorMap* map, uint32_t bar, int k, int m) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(dst),
      "l"(map), "r"(bar), "r"(k), "r"(m)
      : "memory");
}
__device__ __forceinline__ void TmaW(uint32_t dst, const CUtensorMap* map, uint32_t bar, int kb, int group) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, "
      "%4, %5}], [%2], %6;" ::"r"(dst),
      "l"(map), "r"(bar), "r"(0), "r"(kb), "r"(group), "h"(static_cast<uint16_t>(3))
      : "memory");
}
// K-major, 128-byte swizzle, 8-row groups 1024 bytes apart.
__device__ __forceinline__ uint64_t Descriptor(uint32_t address) {
  return (static_cast<uint64_t>(1) << 62) | (static_cast<uint64_t>(1024 >> 4) << 32) |
         (static_cast<uint64_t>(1) << 16) | ((address & 0x3ffff) >> 4);
}
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t r;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(r));
  return r;
}
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

template <typename T>
__device__ __forceinline__ uint32_t Pack2(float a, float b) {
  if constexpr (std::is_same_v<T, __half>) {
    const __half2 h = __floats2half2_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  } else {
    const __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    return *reinterpret_cast<const uint32_t*>(&h);
  }
}

// Lane t of four holds element t of rows 0..3 in a; afterwards it holds row t.
__device__ __forceinline__ void QuadTranspose(uint32_t (&a)[4], int t) {
  const bool odd = t & 1, high = t & 2;
  uint32_t s0 = odd ? a[0] : a[1], s1 = odd ? a[2] : a[3];
  s0 = __shfl_xor_sync(~0u, s0, 1);
  s1 = __shfl_xor_sync(~0u, s1, 1);
  if (odd) a[0] = s0, a[2] = s1; else a[1] = s0, a[3] = s1;
  uint32_t u0 = high ? a[0] : a[2], u1 = high ? a[1] : a[3];
  u0 = __shfl_xor_sync(~0u, u0, 2);
  u1 = __shfl_xor_sync(~0u, u1, 2);
  if (high) a[0] = u0, a[1] = u1; else a[2] = u0, a[3] = u1;
}

// Tiles in an order that keeps both operands of a wave in the L2 cache.
__device__ __forceinline__ void TileAt(const Params& p, int tile, int* m, int* n) {
  constexpr int kGroup = 8;
  const int per_group = kGroup * p.tiles_n;
  const int group = tile / per_group, rest = tile % per_group;
  const int rows = min(kGroup, p.tiles_m - group * kGroup);
  *m = group * kGroup + rest % rows;
  *n = rest / rows;
}

template <typename T, int kBN, int kStages>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    GemmKernel(const __grid_constant__ CUtensorMap map_x, const __grid_constant__ CUtensorMap map_w,
               const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) char smem_raw[];
  constexpr int kXBytes = kBM * 128, kWBytes = kBN * 128, kStageBytes = kXBytes + kWBytes;
  const uint32_t base = (Shared(smem_raw) + 1023) / 1024 * 1024;
  __shared__ __align__(8) uint64_t full[kStages], empty[kStages];
  const int warp_group = threadIdx.x / 128;
  const uint32_t rank = ClusterRank();
  const int cluster = blockIdx.x / 2, clusters = gridDim.x / 2;
  const int tiles = p.tiles_m * p.tiles_n;
  if (threadIdx.x == 0) {
    for (int s = 0; s < kStages; ++s) {
      BarInit(Shared(&full[s]), 1);
      BarInit(Shared(&empty[s]), 2 * kConsumers);
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  ClusterSync();
  if (warp_group == 0) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
    if (threadIdx.x == 0) {
      int stage = 0, phase = 0;
      for (int tile = cluster; tile < tiles; tile += clusters) {
        int tm, tn;
        TileAt(p, tile, &tm, &tn);
        const int m0 = (tm * 2 + static_cast<int>(rank)) * kBM;
        const int group0 = tn * (kBN / 16) + static_cast<int>(rank) * (kBN / 32);
        for (int kb = 0; kb < p.kblocks; ++kb) {
          BarWait(Shared(&empty[stage]), phase ^ 1);
          const uint32_t bar = Shared(&full[stage]), at = base + stage * kStageBytes;
          BarExpect(bar, kStageBytes);
          TmaX(at, &map_x, bar, kb * kBK, m0);
          TmaW(at + kXBytes + rank * (kWBytes / 2), &map_w, bar, kb, group0);
          if (++stage == kStages) stage = 0, phase ^= 1;
        }
      }
    }
  } else {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
    const int consumer = warp_group - 1;
    const int lane = threadIdx.x % 32, warp = (threadIdx.x / 32) % 4, g = lane / 4, t = lane % 4;
    const bool leader = threadIdx.x % 128 < 2;  // thread i frees the stage in CTA i
    int stage = 0, phase = 0;
    bool waited = false;
    for (int tile = cluster; tile < tiles; tile += clusters) {
      int tm, tn;
      TileAt(p, tile, &tm, &tn);
      float acc[kBN / 2];
      int previous = -1;
      for (int kb = 0; kb < p.kblocks; ++kb) {
        BarWait(Shared(&full[stage]), phase);
        const uint32_t at = base + stage * kStageBytes;
        const uint64_t a = Descriptor(at + consumer * 64 * 128), b = Descriptor(at + kXBytes);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int s = 0; s < 4; ++s) Wgmma<T, kBN>::Run(acc, a + s * 2, b + s * 2, kb > 0 || s > 0);
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 1;" ::: "memory");
        if (previous >= 0 && leader) BarArriveCluster(Shared(&empty[previous]), threadIdx.x % 128);
        previous = stage;
        if (++stage == kStages) stage = 0, phase ^= 1;
      }
      asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
      if (leader) BarArriveCluster(Shared(&empty[previous]), threadIdx.x % 128);
      if (!waited) {
        asm volatile("griddepcontrol.wait;" ::: "memory");
        waited = true;
      }
      const int row0 = (tm * 2 + static_cast<int>(rank)) * kBM + consumer * 64 + warp * 16 + g, row1 = row0 + 8;
      const float2 s0 = row0 < p.m ? p.stats[row0] : float2{0, 0}, s1 = row1 < p.m ? p.stats[row1] : float2{0, 0};
      const int n0 = tn * kBN;
      T* y0 = static_cast<T*>(p.y) + static_cast<int64_t>(row0) * p.n;
      T* y1 = static_cast<T*>(p.y) + static_cast<int64_t>(row1) * p.n;
#pragma unroll
      for (int j = 0; j < kBN / 8; j += 4) {
        uint32_t o0[4], o1[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int n = n0 + (j + i) * 8 + t * 2;
          float2 c = {0, 0}, w = {0, 0};
          if (n < p.n) {
            c = __ldg(reinterpret_cast<const float2*>(p.col_const + n));
            if (!p.rms) w = __ldg(reinterpret_cast<const float2*>(p.col_sum + n));
          }
          const float* d = acc + (j + i) * 4;
          o0[i] = Pack2<T>(fmaf(s0.y, d[0] - s0.x * w.x, c.x), fmaf(s0.y, d[1] - s0.x * w.y, c.y));
          o1[i] = Pack2<T>(fmaf(s1.y, d[2] - s1.x * w.x, c.x), fmaf(s1.y, d[3] - s1.x * w.y, c.y));
        }
        QuadTranspose(o0, t);
        QuadTranspose(o1, t);
        const int n = n0 + (j + t) * 8;
        if (n < p.n) {
          if (row0 < p.m) *reinterpret_cast<uint4*>(y0 + n) = uint4{o0[0], o0[1], o0[2], o0[3]};
          if (row1 < p.m) *reinterpret_cast<uint4*>(y1 + n) = uint4{o1[0], o1[1], o1[2], o1[3]};
        }
      }
    }
  }
  ClusterSync();  // the other CTA may still signal barriers here
}

template <typename T>
__global__ void __launch_bounds__(256) StatsKernel(const T* x, float2* stats, int m, int k, float epsilon, int rms) {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  const int row = blockIdx.x * 8 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= m) return;
  const uint4* p = reinterpret_cast<const uint4*>(x + static_cast<int64_t>(row) * k);
  const int chunks = k / 8;
  float mean = 0, squares = 0, count = 0;
  for (int c0 = 0; c0 < chunks; c0 += 256) {
    uint4 v[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) v[i] = c0 + i * 32 + lane < chunks ? __ldg(p + c0 + i * 32 + lane) : uint4{0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (c0 + i * 32 + lane >= chunks) continue;
      float f[8];
      const T* h = reinterpret_cast<const T*>(&v[i]);
      float mu = 0;
#pragma unroll
      for (int e = 0; e < 8; ++e) f[e] = static_cast<float>(h[e]), mu += f[e];
      mu = rms ? 0 : mu * 0.125f;
      float sq = 0;
#pragma unroll
      for (int e = 0; e < 8; ++e) sq = fmaf(f[e] - mu, f[e] - mu, sq);
      const float share = __fdividef(8.0f, count + 8.0f), d = mu - mean;
      mean = fmaf(d, share, mean);
      squares += sq + d * d * (count * share);
      count += 8.0f;
    }
  }
  for (int o = 16; o > 0; o >>= 1) {
    const float n2 = __shfl_xor_sync(~0u, count, o), m2 = __shfl_xor_sync(~0u, mean, o), s2 = __shfl_xor_sync(~0u, squares, o);
    const float all = count + n2, d = m2 - mean, share = all > 0 ? n2 / all : 0.0f;
    mean += d * share;
    squares += s2 + d * d * (count * share);
    count = all;
  }
  if (lane == 0) {
    const float v = squares / k + epsilon;
    stats[row] = {mean, v > 0 ? rsqrtf(v) : 0.0f};
  }
}

using Encode = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*, const cuuint64_t*,
                            const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave, CUtensorMapSwizzle,
                            CUtensorMapL2promotion, CUtensorMapFloatOOBfill);
Encode GetEncode() {
  static Encode encode = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult r;
    cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &f, 12000, cudaEnableDefault, &r);
    return reinterpret_cast<Encode>(f);
  }();
  return encode;
}

template <typename T, int kBN, int kStages>
int Launch(const void* w, const void* x, const Params& p0, float epsilon, int sms, cudaStream_t stream, int with_stats) {
  Params p = p0;
  p.tiles_m = (p.m + 2 * kBM - 1) / (2 * kBM);
  p.tiles_n = (p.n + kBN - 1) / kBN;
  constexpr auto type = std::is_same_v<T, __half> ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  CUtensorMap mx, mw;
  {
    const cuuint64_t dims[] = {static_cast<cuuint64_t>(p.k), static_cast<cuuint64_t>(p.m)}, strides[] = {static_cast<cuuint64_t>(p.k) * 2};
    const cuuint32_t box[] = {64, kBM}, ones[] = {1, 1};
    if (GetEncode()(&mx, type, 2, const_cast<void*>(x), dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
      return -2;
  }
  {
    const cuuint64_t groups = (p.n + 15) / 16, kb = p.kblocks;
    const cuuint64_t dims[] = {256, kb, groups}, strides[] = {2048, 2048 * kb};
    const cuuint32_t box[] = {256, 1, kBN / 32}, ones[] = {1, 1, 1};
    if (GetEncode()(&mw, CU_TENSOR_MAP_DATA_TYPE_FLOAT64, 3, const_cast<void*>(w), dims, strides, box, ones, CU_TENSOR_MAP_INTERLEAVE_NONE,
                    CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE))
      return -3;
  }
  if (with_stats) {
    StatsKernel<T><<<(p.m + 7) / 8, 256, 0, stream>>>(static_cast<const T*>(x), const_cast<float2*>(p.stats), p.m, p.k, epsilon, p.rms);
  }
  constexpr int bytes = kStages * (kBM + kBN) * 128 + 1024;
  auto kernel = GemmKernel<T, kBN, kStages>;
  cudaError_t e = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
  if (e != cudaSuccess) return e;
  cudaLaunchConfig_t config = {};
  const int tiles = p.tiles_m * p.tiles_n;
  config.gridDim = 2 * (tiles < sms / 2 ? tiles : sms / 2);
  config.blockDim = kThreads;
  config.dynamicSmemBytes = bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = with_stats;
  return cudaLaunchKernelEx(&config, kernel, mx, mw, p);
}

}  // namespace

extern "C" int qkv_gemm(int bf16, int bn, const void* w, const void* x, float2* stats, const float* col_const, const float* col_sum,
                        void* y, int m, int k, int n, float epsilon, int rms, int sms, int with_stats, cudaStream_t s) {
  const Params p{stats, col_const, col_sum, y, m, k, n, (k + 63) / 64, 0, 0, rms};
  if (bf16) {
    if (bn == 256) return Launch<__nv_bfloat16, 256, 4>(w, x, p, epsilon, sms, s, with_stats);
    if (bn == 192) return Launch<__nv_bfloat16, 192, 5>(w, x, p, epsilon, sms, s, with_stats);
    return Launch<__nv_bfloat16, 128, 6>(w, x, p, epsilon, sms, s, with_stats);
  }
  if (bn == 256) return Launch<__half, 256, 4>(w, x, p, epsilon, sms, s, with_stats);
  if (bn == 192) return Launch<__half, 192, 5>(w, x, p, epsilon, sms, s, with_stats);
  return Launch<__half, 128, 6>(w, x, p, epsilon, sms, s, with_stats);
}

}  // namespace qkvgemm::cuda
