// Device memory with guard bytes, and loops on the device.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <utility>
#include <vector>

namespace qkvgemm::support {

// For calls that fail only when something before them has broken the device: there is nothing left to test
// then.
inline void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("FATAL %s: %s (%s)\n", what, cudaGetErrorString(error), cudaGetErrorName(error));
  std::fflush(stdout);
  std::_Exit(3);
}

template <typename Body>
__global__ void __launch_bounds__(256) ForEachKernel(int64_t count, Body body) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) body(i);
}

// Calls body(i) on the device for each i below `count`.
template <typename Body>
void ForEach(int64_t count, cudaStream_t stream, const Body& body) {
  if (count == 0) return;
  const int64_t blocks = (count + 255) / 256;
  ForEachKernel<<<static_cast<unsigned>(blocks < 65536 ? blocks : 65536), 256, 0, stream>>>(count, body);
  Must(cudaGetLastError(), "a kernel of the test");
}

constexpr int kPoison = 0xff;  // NaN in all three float types

// Memory whose every byte is poisoned, with guards around what the kernels may touch. Aligned to 256 bytes,
// or to the element alone.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  DeviceBuffer(size_t bytes, size_t element, bool aligned, size_t guard)
      : begin_(guard + (aligned ? 0 : element)), end_(begin_ + bytes), total_(end_ + guard) {
    Must(cudaMalloc(&base_, total_ == 0 ? 1 : total_), "cudaMalloc");
  }
  DeviceBuffer(DeviceBuffer&& other) noexcept { *this = std::move(other); }
  DeviceBuffer& operator=(DeviceBuffer&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(begin_, other.begin_);
    std::swap(end_, other.end_);
    std::swap(total_, other.total_);
    return *this;
  }
  ~DeviceBuffer() {
    if (base_ != nullptr) cudaFree(base_);
  }
  void Poison(cudaStream_t stream) const {
    if (total_ > 0) Must(cudaMemsetAsync(base_, kPoison, total_, stream), "cudaMemsetAsync");
  }
  void* Data() const { return base_ == nullptr ? nullptr : base_ + begin_; }
  size_t Bytes() const { return end_ - begin_; }

  uint8_t* base_ = nullptr;
  size_t begin_ = 0, end_ = 0, total_ = 0;
};

// Grows and keeps what it has, for what each case needs anew.
template <typename T>
class DeviceArray {
 public:
  T* Get(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(T);
    if (buffer_.Bytes() < bytes || buffer_.Data() == nullptr)
      buffer_ = DeviceBuffer(bytes + 256, sizeof(T), true, 0);
    return static_cast<T*>(buffer_.Data());
  }

 private:
  DeviceBuffer buffer_;
};

// Counts the guard bytes that were written to.
struct CheckGuards {
  static constexpr int kMost = 16,
                       kBytes = 1024;  // bytes looked at around each buffer; both guards are shorter
  struct {
    const uint8_t* base;
    int64_t begin, end, total;
  } of[kMost] = {};
  int count = 0;
  unsigned long long* changed = nullptr;

  void Add(const DeviceBuffer& b) {
    if (b.base_ == nullptr || count == kMost) return;
    of[count++] = {b.base_, static_cast<int64_t>(b.begin_), static_cast<int64_t>(b.end_),
                   static_cast<int64_t>(b.total_)};
  }
  __device__ void operator()(int64_t i) const {
    const auto& b = of[i / kBytes];
    int64_t at = i % kBytes;
    if (at >= b.begin) at += b.end - b.begin;
    if (at < b.total && b.base[at] != kPoison) atomicAdd(changed, 1ull);
  }
};

struct CompareBytes {
  const uint8_t *a, *b;
  unsigned long long* different;
  __device__ void operator()(int64_t i) const {
    if (a[i] != b[i]) atomicAdd(different, 1ull);
  }
};

}  // namespace qkvgemm::support
