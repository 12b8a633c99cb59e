// Few rows: one pass over W at the speed of memory, on mma.sync (sm_80 and later).
//
// W is packed as [N/16][K/64] pieces of 16 rows (columns of W) by 64 k, 2 KB each, rows of 128 bytes whose eight
// 16-byte chunks are permuted by XOR with row % 8: what wgmma's 128-byte swizzle wants, so that one packed form
// serves every family. A chunk holds 8 consecutive k of one column. A sum over k may be taken in any order as long as
// W and x agree: lane (g, t) of a warp feeds the chunk of column g and that of column g + 8 to two mma.m16n8k16, and
// the same chunk of token g's row as the other operand. So W goes from memory to registers in 16-byte loads, without
// shared memory.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

#ifndef HINT
#define HINT ".L2::256B"
#endif
#ifndef PDL
#define PDL 1
#endif

namespace qkvgemm::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;

struct Params {
  const uint4* w;
  const void* x;
  const float* col_const;
  const float* col_sum;
  void* y;
  int m, k, n;
  int kblocks;
  int n16;  // 16-column groups
  float epsilon;
  int rms;
};

__device__ __forceinline__ uint4 LoadStream(const uint4* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate" HINT ".v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

template <typename T>
__device__ __forceinline__ void Mma(float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0,
                                    uint32_t b1) {
  if constexpr (sizeof(T) == 2 && std::is_same_v<T, __half>) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  } else {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
  }
}


// Mean and sum of squared deviations of `count` values; merged as Chan, Golub and LeVeque (1983) do.
struct Moments {
  float mean = 0, squares = 0;
};

__device__ __forceinline__ void MergeEqual(Moments& a, float other_mean, float other_squares, float count) {
  const float d = other_mean - a.mean;
  a.mean += 0.5f * d;
  a.squares += other_squares + d * d * (0.5f * count);
}

template <typename T>
__device__ __forceinline__ float2 Unpack(uint32_t v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __half22float2(*reinterpret_cast<const __half2*>(&v));
  } else {
    return {__uint_as_float(v << 16), __uint_as_float(v & 0xffff0000u)};
  }
}

// Adds eight values to what holds `seen` values; 8 / (seen + 8) = share.
template <typename T>
__device__ __forceinline__ void Accumulate(Moments& a, const uint4& v, bool rms, float seen, float share) {
  const float2 p0 = Unpack<T>(v.x), p1 = Unpack<T>(v.y), p2 = Unpack<T>(v.z), p3 = Unpack<T>(v.w);
  const float f[8] = {p0.x, p0.y, p1.x, p1.y, p2.x, p2.y, p3.x, p3.y};
  float mean = 0;
  if (!rms) mean = ((f[0] + f[1]) + (f[2] + f[3]) + ((f[4] + f[5]) + (f[6] + f[7]))) * 0.125f;
  float squares = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) squares = fmaf(f[i] - mean, f[i] - mean, squares);
  const float d = mean - a.mean;
  a.mean = fmaf(d, share, a.mean);
  a.squares += squares + d * d * (seen * share);
}

// grid: tiles of kSub * 16 columns. Each warp takes every eighth block of 64 k; nothing is shared until the end.
template <typename T, int kSub, int kTokens8>
__global__ void __launch_bounds__(kThreads, 1) StreamKernel(const __grid_constant__ Params p) {
  __shared__ float part[kWarps][kSub * 16][kTokens8 * 8 + 1];
  __shared__ float moments[kWarps][kTokens8 * 8][3];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
  const int group0 = blockIdx.x * kSub;
  constexpr int kItems = kSub * 2;
  uint4 buffer[kItems][2], xs[2][kTokens8];
  const int swz_lo = (t ^ (g & 3)) | (g & 4), swz_hi = swz_lo ^ 4;  // chunk t and chunk 4 + t of row g (and g + 8)
  const uint4* base = p.w + (static_cast<int64_t>(group0) * p.kblocks) * 128 + g * 8;
  const int64_t group_stride = static_cast<int64_t>(p.kblocks) * 128;
  const auto load = [&](int kb, int item) __attribute__((always_inline)) {
    const int sub = item >> 1;
    const uint4* q = base + sub * group_stride + kb * 128 + ((item & 1) ? swz_hi : swz_lo);
    if (kSub == 1 || group0 + sub < p.n16) {
      buffer[item][0] = LoadStream(q);
      buffer[item][1] = LoadStream(q + 64);
    }
  };
  const auto load_x = [&](int kb, int half) __attribute__((always_inline)) {
    const int at = kb * 64 + half * 32 + t * 8;
#pragma unroll
    for (int j = 0; j < kTokens8; ++j) {
      const int token = j * 8 + g;
      xs[half][j] = uint4{0, 0, 0, 0};
      if (token < p.m && at < p.k)
        xs[half][j] = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(p.x) + static_cast<int64_t>(token) * p.k + at));
    }
  };
#pragma unroll
  for (int i = 0; i < kItems; ++i) buffer[i][0] = buffer[i][1] = uint4{0, 0, 0, 0};
  if (warp < p.kblocks) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) load(warp, i);
  }
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  if (warp < p.kblocks) {
    load_x(warp, 0);
    load_x(warp, 1);
  }
  float acc[kSub][kTokens8][4] = {};
  Moments rows[kTokens8];
  float seen = 0;
  for (int kb = warp; kb < p.kblocks; kb += kWarps) {
    const int next = kb + kWarps;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (kb * 64 + half * 32 + t * 8 < p.k) {
        const float share = __fdividef(8.0f, seen + 8.0f);
#pragma unroll
        for (int j = 0; j < kTokens8; ++j) Accumulate<T>(rows[j], xs[half][j], p.rms, seen, share);
        seen += 8.0f;
      }
#pragma unroll
      for (int sub = 0; sub < kSub; ++sub) {
        const int item = sub * 2 + half;
        const uint4 lo = buffer[item][0], hi = buffer[item][1];
#pragma unroll
        for (int j = 0; j < kTokens8; ++j) {
          Mma<T>(acc[sub][j], lo.x, hi.x, lo.y, hi.y, xs[half][j].x, xs[half][j].y);
          Mma<T>(acc[sub][j], lo.z, hi.z, lo.w, hi.w, xs[half][j].z, xs[half][j].w);
        }
        if (next < p.kblocks) load(next, item);
      }
      if (next < p.kblocks) load_x(next, half);
    }
  }
#pragma unroll
  for (int sub = 0; sub < kSub; ++sub)
#pragma unroll
    for (int j = 0; j < kTokens8; ++j) {
      float* q = &part[warp][sub * 16 + g][j * 8 + t * 2];
      q[0] = acc[sub][j][0];
      q[1] = acc[sub][j][1];
      q += 8 * (kTokens8 * 8 + 1);
      q[0] = acc[sub][j][2];
      q[1] = acc[sub][j][3];
    }
  // A row's moments: four lanes of each warp hold parts of it.
#pragma unroll
  for (int j = 0; j < kTokens8; ++j) {
    float count = seen;
#pragma unroll
    for (int o = 1; o <= 2; o *= 2) {
      const float n2 = __shfl_xor_sync(~0u, count, o), m2 = __shfl_xor_sync(~0u, rows[j].mean, o),
                  s2 = __shfl_xor_sync(~0u, rows[j].squares, o);
      const float all = count + n2, d = m2 - rows[j].mean, share = all > 0 ? n2 / all : 0.0f;
      rows[j].mean += d * share;
      rows[j].squares += s2 + d * d * (count * share);
      count = all;
    }
    if (t == 0) {
      moments[warp][j * 8 + g][0] = count;
      moments[warp][j * 8 + g][1] = rows[j].mean;
      moments[warp][j * 8 + g][2] = rows[j].squares;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSub * 16 * p.m; i += kThreads) {
    const int column = i % (kSub * 16), token = i / (kSub * 16);
    const int n = group0 * 16 + column;
    if (n >= p.n) continue;
    float sum = 0, count = 0, mean = 0, squares = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      sum += part[w][column][token];
      const float n2 = moments[w][token][0], all = count + n2, d = moments[w][token][1] - mean,
                  share = all > 0 ? __fdividef(n2, all) : 0.0f;
      mean += d * share;
      squares += moments[w][token][2] + d * d * (count * share);
      count = all;
    }
    const float variance = squares / p.k + p.epsilon;
    const float rstd = variance > 0 ? rsqrtf(variance) : 0.0f;
    const float v = rstd * (sum - mean * p.col_sum[n]) + p.col_const[n];
    static_cast<T*>(p.y)[static_cast<int64_t>(token) * p.n + n] = static_cast<T>(v);
  }
}

template <typename T, int kSub, int kTokens8>
int Launch(const Params& p, cudaStream_t stream) {
  cudaLaunchConfig_t config = {};
  config.gridDim = (p.n16 + kSub - 1) / kSub;
  config.blockDim = kThreads;
  config.stream = stream;
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = PDL;
  return cudaLaunchKernelEx(&config, StreamKernel<T, kSub, kTokens8>, p);
}

template <typename T, int kTokens8>
int LaunchSub(int sub, const Params& p, cudaStream_t stream) {
  switch (sub) {
    case 1: return Launch<T, 1, kTokens8>(p, stream);
    case 2: return Launch<T, 2, kTokens8>(p, stream);
    case 3: return Launch<T, 3, kTokens8>(p, stream);
    case 4: return Launch<T, 4, kTokens8>(p, stream);
    case 5: return Launch<T, 5, kTokens8>(p, stream);
    case 6: return Launch<T, 6, kTokens8>(p, stream);
  }
  return -1;
}

// One 2 KB piece a block of 128 threads: thread = (row, chunk).
template <typename T>
__global__ void PackKernel(const T* w, const float* gamma, T* out, int k, int n, int kblocks) {
  const int kb = blockIdx.x, group = blockIdx.y, row = threadIdx.x / 8, chunk = threadIdx.x % 8;
  const int column = group * 16 + row;
  T values[8];
  for (int i = 0; i < 8; ++i) {
    const int kk = kb * 64 + chunk * 8 + i;
    float v = 0;
    if (kk < k && column < n) v = static_cast<float>(w[static_cast<int64_t>(kk) * n + column]) * (gamma ? gamma[kk] : 1.0f);
    values[i] = static_cast<T>(v);
  }
  T* target = out + ((static_cast<int64_t>(group) * kblocks + kb) * 128 + row * 8 + (chunk ^ (row & 7))) * 8;
  *reinterpret_cast<uint4*>(target) = *reinterpret_cast<const uint4*>(values);
}

}  // namespace

extern "C" int qkv_pack(int bf16, const void* w, const float* gamma, void* out, int k, int n, cudaStream_t s) {
  const int kblocks = (k + 63) / 64, n16 = (n + 15) / 16;
  const dim3 grid(kblocks, n16);
  if (bf16)
    PackKernel<<<grid, 128, 0, s>>>(static_cast<const __nv_bfloat16*>(w), gamma, static_cast<__nv_bfloat16*>(out), k, n, kblocks);
  else
    PackKernel<<<grid, 128, 0, s>>>(static_cast<const __half*>(w), gamma, static_cast<__half*>(out), k, n, kblocks);
  return cudaGetLastError();
}

extern "C" int qkv_stream(int bf16, int sub, const void* w, const void* x, const float* col_const, const float* col_sum,
                          void* y, int m, int k, int n, float epsilon, int rms, cudaStream_t s) {
  Params p{static_cast<const uint4*>(w), x, col_const, col_sum, y, m, k, n, (k + 63) / 64, (n + 15) / 16, epsilon, rms};
  if (m <= 8) return bf16 ? LaunchSub<__nv_bfloat16, 1>(sub, p, s) : LaunchSub<__half, 1>(sub, p, s);
  return bf16 ? LaunchSub<__nv_bfloat16, 2>(sub, p, s) : LaunchSub<__half, 2>(sub, p, s);
}

}  // namespace qkvgemm::cuda
