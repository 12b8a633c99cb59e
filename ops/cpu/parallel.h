// Calls a lambda for 0 .. count-1 on the caller's threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/qkv_gemm_cpu.h"

namespace qkvgemm::cpu {

template <typename Fn>
void ParallelFor(const ThreadPool& pool, int64_t count, const Fn& fn) {
  if (count <= 0) return;
  if (pool.run == nullptr || pool.threads <= 1 || count == 1) {
    for (int64_t i = 0; i < count; ++i) fn(i);
    return;
  }
  pool.run(
      pool.state, static_cast<size_t>(count),
      [](void* context, size_t i) { (*static_cast<const Fn*>(context))(static_cast<int64_t>(i)); },
      const_cast<Fn*>(&fn));
}

}  // namespace qkvgemm::cpu
