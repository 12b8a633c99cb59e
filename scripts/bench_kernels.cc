// Times the CPU kernels by themselves: verified against float64 on sampled results, then fastest and median
// of repeated runs, with GB/s of weights and GFLOP/s beside the machine's own limits in the same run: a read
// of memory, and products of registers.
//
//   qkvgemm_bench [threads] [K N]...
//   qkvgemm_bench --limits [threads]    the machine's limits alone, as JSON
//   qkvgemm_bench --choices [threads] [K N]...    what each choice that plans leave open takes, in turn, with
//                                                 the weights out of the first two cache levels
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>

#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "test/kernels/check.h"
#include "test/kernels/cpu_arithmetic.h"
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
double Microseconds(const Fn& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count();
}

struct Times {
  double fastest;  // microseconds
  double median;
};

template <typename Fn>
Times Time(const Fn& fn) {
  using Clock = std::chrono::steady_clock;
  fn();
  std::vector<double> times;
  const auto begin = Clock::now();
  while (times.size() < 5 || (times.size() < 400 && Clock::now() - begin < std::chrono::milliseconds(400)))
    times.push_back(Microseconds(fn));
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2]};
}

struct FreeDeleter {
  void operator()(void* p) const { std::free(p); }
};

// A buffer beyond the last-level cache, on the pages that W has.
class Memory {
 public:
  static constexpr size_t kBytes = size_t{256} << 20;

  Memory() : memory_(AllocatePacked(kBytes)) {
    if (memory_ == nullptr) {
      std::fprintf(stderr, "no %zu MB of memory for its bandwidth to be measured\n", kBytes >> 20);
      std::exit(1);
    }
    std::fill(Words(), Words() + kWords, 1);
  }
  // By these threads, all of it.
  void Read(const ThreadPool& pool) {
    pool.run(
        pool.state, kTasks,
        [](void* self, size_t i) {
          auto& memory = *static_cast<Memory*>(self);
          const uint64_t* const data = memory.Words();
          const size_t begin = kWords * i / kTasks, end = kWords * (i + 1) / kTasks;
          uint64_t s[8] = {};
          for (size_t j = begin; j + 8 <= end; j += 8)
            for (size_t l = 0; l < 8; ++l) s[l] += data[j + l];
          memory.sink_ += s[0] + s[1] + s[2] + s[3] + s[4] + s[5] + s[6] + s[7];
        },
        this);
  }

 private:
  static constexpr size_t kWords = kBytes / sizeof(uint64_t), kTasks = 64;

  uint64_t* Words() const { return static_cast<uint64_t*>(memory_.get()); }

  std::unique_ptr<void, FreeDeleter> memory_;
  std::atomic<uint64_t> sink_{0};
};

// GB/s that these threads read.
double ReadBandwidth(const ThreadPool& pool) {
  Memory memory;
  return Memory::kBytes / Time([&] { memory.Read(pool); }).fastest / 1e3;
}

// GFLOP/s that these threads reach on registers.
double PeakOf(Operand operand, Isa isa, const ThreadPool& pool) {
  struct Context {
    Operand operand;
    Isa isa;
    std::atomic<int64_t> products;
  } context{operand, isa, 0};
  constexpr int64_t kSteps = 20000;
  const size_t tasks = static_cast<size_t>(pool.threads);
  const auto spin = [&] {
    context.products = 0;
    pool.run(
        pool.state, tasks,
        [](void* c, size_t) {
          auto& x = *static_cast<Context*>(c);
          uint32_t sink[kMaxNr] = {};
          x.products += KernelsOf(x.isa).spin(x.operand, kSteps, sink);
        },
        &context);
  };
  const double us = Time(spin).fastest;
  return 2e-3 * static_cast<double>(context.products) / us;
}

bool Verify(Case& c, const Plan& plan) {
  std::mt19937 random(1);
  const Arithmetic arithmetic = ArithmeticOf(plan);
  for (int sample = 0; sample < 64; ++sample) {
    const int64_t r = static_cast<int64_t>(random() % static_cast<uint64_t>(c.p.m));
    const int64_t n = static_cast<int64_t>(random() % static_cast<uint64_t>(c.p.n));
    const Expectation expected = Expect(c, r, n, arithmetic);
    const double got = c.y[0].Get(r * c.p.n + n);
    if (!Within(c.p.t, got, expected.value, expected.bound)) {
      std::printf("wrong: m %lld n %lld is %g, expected %g within %g\n", static_cast<long long>(r),
                  static_cast<long long>(n), got, expected.value, expected.bound);
      return false;
    }
  }
  return true;
}

struct Form {
  const char* name;
  DType activations, type;
  bool activation_quant;
  int64_t block;  // of scales; 0: a scale a column
};
constexpr Form kForms[] = {{"float32", DType::kFloat, DType::kFloat, false, 0},
                           {"float16", DType::kFloat, DType::kFloat16, false, 0},
                           {"bfloat16", DType::kFloat, DType::kBFloat16, false, 0},
                           {"all bfloat16", DType::kBFloat16, DType::kBFloat16, false, 0},
                           {"int8", DType::kFloat, DType::kInt8, false, 0},
                           {"int8 by 64", DType::kFloat, DType::kInt8, false, 64},
                           {"int8 x int8", DType::kFloat, DType::kInt8, true, 0},
                           {"the same by 64", DType::kFloat, DType::kInt8, true, 64}};

// A problem of a form, with operands for up to `rows` rows.
Case MakeCase(const Form& form, int64_t rows, int64_t k, int64_t n) {
  Case c;
  c.p.m = rows, c.p.k = k, c.p.n = n;
  c.p.t = form.activations, c.p.tw = form.type;
  c.p.activation_quant = form.activation_quant;
  c.splits = {n};
  if (c.p.tw == DType::kInt8 && form.block == 0)
    c.p.scale_layout = ScaleLayout::kColumnGroups, c.p.scale_groups = n;
  if (form.block != 0) c.p.scale_layout = ScaleLayout::kBlocks, c.p.scale_block = form.block;
  std::mt19937 random(7);
  c.Fill(random);
  return c;
}

std::unique_ptr<void, FreeDeleter> PackCase(Case& c, Isa isa, const ThreadPool& pool) {
  std::unique_ptr<void, FreeDeleter> packed(AllocatePacked(PackedBytes(c.p, isa)));
  Pack(c.p, c.GetOperands(), isa, pool, packed.get());
  return packed;
}

bool BenchChoices(int64_t k, int64_t n, Isa isa, const ThreadPool& pool) {
  constexpr size_t kCacheBytes = size_t{4} << 20;
  std::vector<char> cache(kCacheBytes * static_cast<size_t>(pool.threads));
  const auto empty_caches = [&] {
    pool.run(
        pool.state, static_cast<size_t>(pool.threads),
        [](void* data, size_t i) {
          for (size_t at = 0; at < kCacheBytes; at += 64) ++static_cast<char*>(data)[i * kCacheBytes + at];
        },
        cache.data());
  };
  for (const Form& form : kForms) {
    if (form.block != 0 && k % form.block != 0) continue;
    Case c = MakeCase(form, 2048, k, n);
    const Operands o = c.GetOperands();
    const auto packed = PackCase(c, isa, pool);
    for (int64_t m : {1, 4, 14, 64, 512, 2048}) {
      c.p.m = m;
      const std::vector<Choice> choices = Choices(c.p, isa, pool.threads);
      std::vector<std::vector<double>> times(choices.size());
      constexpr int kRounds = 25;
      for (int round = 0; round < kRounds; ++round)
        for (size_t i = 0; i < choices.size(); ++i) {
          Buffer scratch(ScratchBytes(c.p, isa, pool.threads, true, choices[i]));
          empty_caches();
          times[i].push_back(
              Microseconds([&] { Run(c.p, o, packed.get(), isa, pool, scratch.Data(), choices[i]); }));
          if (round == 0 && !Verify(c, MakePlan(c.p, isa, pool.threads, choices[i]))) return false;
        }
      for (size_t i = 0; i < choices.size(); ++i) {
        std::ranges::sort(times[i]);
        std::printf("%-14s K=%lld N=%lld M=%-5lld %9.1f us, median %9.1f  %s: %s\n", form.name,
                    static_cast<long long>(k), static_cast<long long>(n), static_cast<long long>(m),
                    times[i][kRounds / 10], times[i][kRounds / 2], ToString(choices[i]).c_str(),
                    ToString(MakePlan(c.p, isa, pool.threads, choices[i])).c_str());
      }
    }
  }
  return true;
}

// Few rows of input read W once and hardly compute: what share of the bandwidth they reach, against reads of
// memory right before and after each call, because a machine with other guests has twice as much of it at
// one time as at another.
bool BenchBandwidth(int64_t k, int64_t n, Isa isa, const ThreadPool& pool) {
  Memory memory;
  for (const Form& form : kForms) {
    if (form.block != 0 && k % form.block != 0) continue;
    Case c = MakeCase(form, 8, k, n);
    const Operands o = c.GetOperands();
    const auto packed = PackCase(c, isa, pool);
    const auto bytes = static_cast<double>(PackedBytes(c.p, isa));
    for (int64_t m : {1, 4, 8}) {
      c.p.m = m;
      Buffer scratch(ScratchBytes(c.p, isa, pool.threads, true));
      const auto run = [&] { Run(c.p, o, packed.get(), isa, pool, scratch.Data()); };
      run();
      if (!Verify(c, MakePlan(c.p, isa, pool.threads))) return false;
      constexpr int kRounds = 50;
      std::vector<double> rates, limits, shares;
      double before = Microseconds([&] { memory.Read(pool); });
      for (int round = 0; round < kRounds; ++round) {
        const double us = Microseconds(run), after = Microseconds([&] { memory.Read(pool); });
        rates.push_back(bytes / us / 1e3);
        limits.push_back(2 * Memory::kBytes / (before + after) / 1e3);
        shares.push_back(100 * rates.back() / limits.back());
        before = after;
      }
      for (auto* values : {&rates, &limits, &shares}) std::ranges::sort(*values);
      std::printf(
          "%-14s K=%lld N=%lld M=%lld, %d threads: %.1f GB/s where memory gives %.1f; %.0f %% of it "
          "(%.0f to %.0f, P10 to P90)\n",
          form.name, static_cast<long long>(k), static_cast<long long>(n), static_cast<long long>(m),
          pool.threads, rates[kRounds / 2], limits[kRounds / 2], shares[kRounds / 2], shares[kRounds / 10],
          shares[kRounds * 9 / 10]);
    }
  }
  return true;
}

bool Bench(int64_t k, int64_t n, Isa isa, const ThreadPool& pool, double bandwidth,
           const double (&peaks)[3]) {
  std::printf("\nK=%lld N=%lld, %s, %d threads, read bandwidth %.1f GB/s, GFLOP/s of registers: float %.0f",
              static_cast<long long>(k), static_cast<long long>(n), IsaName(isa), pool.threads, bandwidth,
              peaks[0]);
  if (DotOf(isa).bfloat16) std::printf(", bfloat16 %.0f", peaks[1]);
  if (DotOf(isa).int8) std::printf(", int8 %.0f", peaks[2]);
  std::printf("\n%-14s %5s %-8s %10s %10s %8s %9s %6s %7s\n", "weights", "M", "as", "fastest us", "median us",
              "GB/s", "GFLOP/s", "of BW", "of peak");
  for (const Form& form : kForms) {
    if (form.block != 0 && k % form.block != 0) continue;
    Case c = MakeCase(form, 2048, k, n);
    const Operands o = c.GetOperands();
    const size_t bytes = PackedBytes(c.p, isa);
    const auto packed = PackCase(c, isa, pool);
    const double pack = Time([&] { Pack(c.p, o, isa, pool, packed.get()); }).fastest;
    std::printf("%-14s packed in %.1f ms, %.1f GB/s\n", form.name, pack / 1e3,
                static_cast<double>(bytes) / pack / 1e3);
    size_t most = 0;
    constexpr int64_t kRows[] = {1, 2, 4, 5, 8, 14, 16, 24, 32, 64, 128, 512, 2048};
    for (int64_t m : kRows) {
      c.p.m = m;
      most = std::max(most, ScratchBytes(c.p, isa, pool.threads, true));
    }
    Buffer scratch(most);
    for (int64_t m : kRows) {
      c.p.m = m;
      const Plan plan = MakePlan(c.p, isa, pool.threads);
      const Operand operand = plan.operand;
      const auto run = [&] { Run(c.p, o, packed.get(), isa, pool, scratch.Data()); };
      run();
      if (!Verify(c, plan)) return false;
      const Times us = Time(run);
      const double gb = static_cast<double>(bytes) / us.fastest / 1e3;
      const double flops = 2e-3 * static_cast<double>(m * k * n) / us.fastest;
      constexpr const char* kNames[] = {"float", "bfloat16", "int8"};
      std::printf("%-14s %5lld %-8s %10.1f %10.1f %8.1f %9.1f %5.0f%% %6.0f%%\n", form.name,
                  static_cast<long long>(m), kNames[static_cast<int>(operand)], us.fastest, us.median, gb,
                  flops, 100 * gb / bandwidth, 100 * flops * plan.digits / peaks[static_cast<int>(operand)]);
    }
  }
  return true;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string option = argc > 1 && argv[1][0] == '-' ? argv[1] : "";
  if (!option.empty()) --argc, ++argv;
  const bool limits = option == "--limits", choices = option == "--choices", beside = option == "--bandwidth";
  if (!option.empty() && !limits && !choices && !beside) {
    std::fprintf(stderr, "unknown option %s; there are --limits, --choices and --bandwidth\n",
                 option.c_str());
    return 2;
  }
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  SpinningPool pool(std::max(1, threads));
  std::string error;
  Isa isa;
  if (!SelectIsa(std::getenv("QKVGEMM_ISA"), &isa, &error)) {
    std::printf("%s\n", error.c_str());
    return 1;
  }
  const double bandwidth = choices || beside ? 0 : ReadBandwidth(pool.pool);
  double peaks[3] = {};
  for (int i = 0; i < 3 && !choices && !beside; ++i)
    peaks[i] = PeakOf(static_cast<Operand>(i), isa, pool.pool);
  if (limits) {
    std::printf("{\"isa\": \"%s\", \"gbPerSecond\": %.1f, \"gflops\": {\"float\": %.1f", IsaName(isa),
                bandwidth, peaks[0]);
    if (DotOf(isa).bfloat16) std::printf(", \"bfloat16\": %.1f", peaks[1]);
    if (DotOf(isa).int8) std::printf(", \"int8\": %.1f", peaks[2]);
    std::printf("}}\n");
    return 0;
  }
  const auto bench = [&](int64_t k, int64_t n) {
    if (choices) return BenchChoices(k, n, isa, pool.pool);
    if (beside) return BenchBandwidth(k, n, isa, pool.pool);
    return Bench(k, n, isa, pool.pool, bandwidth, peaks);
  };
  bool ok = true;
  if (argc < 4) ok = bench(768, 2304) && bench(4096, 12288);
  for (int i = 2; ok && i + 1 < argc; i += 2) ok = bench(std::atoll(argv[i]), std::atoll(argv[i + 1]));
  return ok ? 0 : 1;
}
