// Threads and memory for the CPU kernels' tests.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#include "ops/cpu/qkv_gemm_cpu.h"

namespace qkvgemm::support {

struct ThreadedPool {
  cpu::ThreadPool pool;
  explicit ThreadedPool(int threads) {
    pool.threads = threads;
    pool.state = this;
    pool.run = [](void* state, size_t count, void (*fn)(void*, size_t), void* context) {
      std::atomic<size_t> next{0};
      auto work = [&] {
        for (size_t i; (i = next++) < count;) fn(context, i);
      };
      std::vector<std::thread> extra;
      for (int t = 1; t < static_cast<ThreadedPool*>(state)->pool.threads; ++t) extra.emplace_back(work);
      work();
      for (auto& t : extra) t.join();
    };
  }
};

struct Buffer {
  explicit Buffer(size_t bytes) : empty(bytes == 0), storage(bytes + 64) {
    std::memset(storage.data(), 0xff, storage.size());
  }
  // Null where there is nothing, as ONNX Runtime has it.
  void* Data() {
    return empty ? nullptr : storage.data() + (64 - reinterpret_cast<uintptr_t>(storage.data()) % 64) % 64;
  }
  bool empty;
  std::vector<char> storage;
};

}  // namespace qkvgemm::support
