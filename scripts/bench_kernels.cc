// Times the CPU kernels by themselves: verified against float64 on sampled results, then median of repeated
// runs, with GB/s of weights, GFLOP/s, and a read of the same bytes and a chain-free multiply-add loop as the
// machine's own limits.
//
//   qkvgemm_bench [threads] [K N]...
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "ops/cpu/plan.h"
#include "test/kernels/case.h"
#include "test/kernels/pool.h"

using namespace qkvgemm;
using namespace qkvgemm::cpu;
using namespace qkvgemm::support;

namespace {

// Threads that wait for work without sleeping, as an inference runtime's do between the nodes of a graph.
class SpinningPool {
 public:
  explicit SpinningPool(int threads) {
    pool.threads = threads;
    pool.state = this;
    pool.run = [](void* state, size_t count, void (*fn)(void*, size_t), void* context) {
      static_cast<SpinningPool*>(state)->Run(count, fn, context);
    };
    for (int t = 1; t < threads; ++t) {
      workers_.emplace_back([this] {
        for (uint64_t seen = 0; !stop_;) {
          if (generation_.load(std::memory_order_acquire) == seen) continue;
          seen = generation_;
          Work();
          --busy_;
        }
      });
    }
  }
  ~SpinningPool() {
    stop_ = true;
    for (auto& w : workers_) w.join();
  }
  ThreadPool pool;

 private:
  void Work() {
    for (size_t i; (i = next_++) < count_;) fn_(context_, i);
  }
  void Run(size_t count, void (*fn)(void*, size_t), void* context) {
    count_ = count, fn_ = fn, context_ = context, next_ = 0;
    busy_ = static_cast<int>(workers_.size());
    ++generation_;
    Work();
    while (busy_ > 0) {
    }
  }
  std::vector<std::thread> workers_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<size_t> next_{0};
  std::atomic<int> busy_{0};
  std::atomic<bool> stop_{false};
  size_t count_ = 0;
  void (*fn_)(void*, size_t) = nullptr;
  void* context_ = nullptr;
};

template <typename Fn>
double MedianMicroseconds(const Fn& fn) {
  using Clock = std::chrono::steady_clock;
  fn();
  std::vector<double> times;
  const auto begin = Clock::now();
  while (times.size() < 5 || (times.size() < 400 && Clock::now() - begin < std::chrono::milliseconds(500))) {
    const auto start = Clock::now();
    fn();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  std::nth_element(times.begin(), times.begin() + static_cast<long>(times.size() / 2), times.end());
  return times[times.size() / 2];
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// GB/s that these threads read, from a buffer beyond the last-level cache.
double ReadBandwidth(const ThreadPool& pool) {
  const size_t words = size_t{256} << 17;                                      // 256 MB
  const std::unique_ptr<void, FreeDeleter> memory(AllocatePacked(words * 8));  // on the pages that W has
  auto* buffer = static_cast<uint64_t*>(memory.get());
  if (buffer == nullptr) return 0;
  std::fill(buffer, buffer + words, 1);
  std::atomic<uint64_t> sink{0};
  struct Context {
    const uint64_t* data;
    size_t words;
    size_t tasks;
    std::atomic<uint64_t>* sink;
  } context{buffer, words, 64, &sink};
  const double us = MedianMicroseconds([&] {
    pool.run(
        pool.state, context.tasks,
        [](void* c, size_t i) {
          const auto& x = *static_cast<Context*>(c);
          const size_t begin = x.words * i / x.tasks, end = x.words * (i + 1) / x.tasks;
          uint64_t s[8] = {};
          for (size_t j = begin; j + 8 <= end; j += 8)
            for (size_t l = 0; l < 8; ++l) s[l] += x.data[j + l];
          *x.sink += s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
        },
        &context);
  });
  return static_cast<double>(words * 8) / us / 1e3;
}

bool Verify(Case& c) {
  std::mt19937 random(1);
  for (int sample = 0; sample < 64; ++sample) {
    const int64_t r = static_cast<int64_t>(random() % static_cast<uint64_t>(c.p.m));
    const int64_t n = static_cast<int64_t>(random() % static_cast<uint64_t>(c.p.n));
    const std::vector<double> row = c.NormRow(r);
    double expected = c.c.Get(n), magnitude = 0;
    for (int64_t k = 0; k < c.p.k; ++k) {
      expected += row[k] * c.Weight(k, n);
      magnitude += std::fabs(row[k] * c.Weight(k, n));
    }
    const double got = c.y[0].Get(r * c.p.n + n);
    if (!(std::fabs(got - expected) <= 1e-5 * magnitude + 1e-5)) {
      std::printf("wrong: m %lld n %lld is %g, expected %g\n", static_cast<long long>(r),
                  static_cast<long long>(n), got, expected);
      return false;
    }
  }
  return true;
}

bool Bench(int64_t k, int64_t n, const ThreadPool& pool, double bandwidth) {
  std::string error;
  Isa isa;
  if (!SelectIsa(std::getenv("QKVGEMM_ISA"), &isa, &error)) {
    std::printf("%s\n", error.c_str());
    return false;
  }
  std::printf("\nK=%lld N=%lld, %s, %d threads, read bandwidth %.1f GB/s\n", static_cast<long long>(k),
              static_cast<long long>(n), IsaName(isa), pool.threads, bandwidth);
  std::printf("%-9s %6s %10s %8s %9s %6s\n", "weights", "M", "us", "GB/s", "GFLOP/s", "of BW");
  const char* names[] = {"float32", "float16", "bfloat16", "int8"};
  for (int type = 0; type < 4; ++type) {
    Case c;
    c.p.k = k, c.p.n = n;
    c.p.tw = static_cast<DType>(type);
    c.splits = {n};
    if (c.p.tw == DType::kInt8) c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = n;
    c.p.m = 512;
    std::mt19937 random(7);
    c.Fill(random);
    const Operands o = c.GetOperands();
    const size_t bytes = PackedBytes(c.p, isa);
    std::unique_ptr<void, FreeDeleter> packed(AllocatePacked(bytes));
    Pack(c.p, o, isa, pool, packed.get());
    Buffer scratch(ScratchBytes(c.p, isa, pool.threads, true));
    for (int64_t m : {1, 4, 8, 14, 16, 24, 32, 64, 128, 512}) {
      c.p.m = m;
      const auto run = [&] { Run(c.p, o, packed.get(), isa, pool, scratch.Data()); };
      run();
      if (!Verify(c)) return false;
      const double us = MedianMicroseconds(run);
      const double gb = static_cast<double>(bytes) / us / 1e3;
      std::printf("%-9s %6lld %10.1f %8.1f %9.1f %5.0f%%\n", names[type], static_cast<long long>(m), us, gb,
                  2e-3 * static_cast<double>(m * k * n) / us, 100 * gb / bandwidth);
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  SpinningPool pool(std::max(1, threads));
  const double bandwidth = ReadBandwidth(pool.pool);
  bool ok = true;
  if (argc < 4) {
    ok = Bench(768, 2304, pool.pool, bandwidth) && Bench(4096, 12288, pool.pool, bandwidth);
  }
  for (int i = 2; ok && i + 1 < argc; i += 2)
    ok = Bench(std::atoll(argv[i]), std::atoll(argv[i + 1]), pool.pool, bandwidth);
  return ok ? 0 : 1;
}
