// The CUDA kernels against the formula in double, on fresh random inputs (the seed is printed) and with
// poisoned outputs: every plan that serves a problem in turn, alone, repeated, back to back and in a CUDA
// graph, with guard bytes around everything that a call may write.
//
//   qkvgemm_cuda_test [--list] [--filter SUBSTRING] [--part I/N] [--quick] [--once] [--threads N]
//                     [--verbose] [--seed N | SEED]
//
// --part: every Nth case from the Ith on, counted from 0. --once: each plan alone, for tools that make a
// launch take a quarter of a second.
//
// Exits 0 if all is within bounds and also where there is no CUDA device ("skipped"), 1 if something is not,
// 2 on a wrong argument, 3 if a kernel broke the device.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cuda/qkv_gemm_cuda.h"
#include "test/cuda/fixture.cuh"
#include "test/cuda/options.h"
#include "test/cuda/tf32.cuh"

using namespace qkvgemm;
using namespace qkvgemm::support;
using cuda::Family;
using cuda::Packing;
using cuda::Plan;
using cuda::Rows;

namespace {

struct FamilyResult {
  int64_t runs = 0, failures = 0;
  double bound = 0, ratio = 0;  // worst error over its bound; worst RMS error over the unfused form's
  std::string ratio_at;
};

// What all threads write to.
class Results {
 public:
  void Fail(const std::string& family, const std::string& what) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++families_[family].failures;
    if (++failures_ > kMostPrinted) return;
    failed_.push_back(what);
    std::printf("FAIL %s\n", what.c_str()), std::fflush(stdout);
  }
  void Add(const std::string& family, double bound) {
    const std::lock_guard<std::mutex> lock(mutex_);
    FamilyResult& f = families_[family];
    ++f.runs;
    f.bound = std::max(f.bound, bound);
  }
  void AddRatio(const std::string& family, double ratio, const std::string& at) {
    const std::lock_guard<std::mutex> lock(mutex_);
    FamilyResult& f = families_[family];
    if (ratio > f.ratio) f.ratio = ratio, f.ratio_at = at;
  }
  int Print(size_t cases) const {
    for (const auto& [name, f] : families_) {
      std::printf("%-24s %7lld runs, %lld failures, error/bound at most %.2f", name.c_str(),
                  static_cast<long long>(f.runs), static_cast<long long>(f.failures), f.bound);
      if (f.ratio > 0) std::printf(", RMS error/unfused at most %.3f (%s)", f.ratio, f.ratio_at.c_str());
      std::printf("\n");
    }
    // Again at the end, which is what is kept of a long run.
    for (const std::string& what : failed_) std::printf("FAIL %s\n", what.c_str());
    std::printf("%zu cases, %lld failures\n", cases, static_cast<long long>(failures_));
    return failures_ == 0 ? 0 : 1;
  }

 private:
  static constexpr int64_t kMostPrinted = 40;

  std::mutex mutex_;
  std::map<std::string, FamilyResult> families_;
  std::vector<std::string> failed_;  // the first of them
  int64_t failures_ = 0;
};

std::string FamilyName(const Plan& plan) {
  const std::string name = ToString(plan);
  const auto rows = name.find("rows ");
  return name.substr(0, name.find_first_of(" ,")) +
         (rows == std::string::npos ? "" : ", " + name.substr(rows));
}

Arithmetic ArithmeticOf(const Problem& p, const Operands& o, const Plan& plan, Packing packing) {
  Arithmetic a;
  if (plan.family == Family::kGeneric) return a;
  a.matrix = true;
  // Under LayerNorm, columns whose mean is not small are packed without it.
  const bool weights_rounded =
      (packing == Packing::kHalf && (p.tw != p.t || p.norm == NormType::kLayerNorm)) ||
      (packing != Packing::kInt8Activations && o.gamma != nullptr);
  a.rows_rounded = plan.rows == Rows::kNormalised;
  if (packing == Packing::kTf32) {
    a.operand = plan.family == Family::kStream ? kTf32RemainderRounding : kTf32Rounding;
    // Scales of whole columns stay out of the integers, which are exact.
    const bool integers = p.tw == DType::kInt8 && p.scale_layout == ScaleLayout::kColumnGroups;
    a.weights_nearest = plan.family != Family::kStream && !integers;
  } else if (weights_rounded || a.rows_rounded) {
    a.operand = RoundingOf(p.t);
  }
  a.mean_last = p.norm != NormType::kNone && (plan.rows == Rows::kInput || plan.rows == Rows::kPadded);
  return a;
}

// Tests cases one after the other, on a stream of its own.
class Tester {
 public:
  Tester(const Options& options, const cuda::Device& device, Results* results)
      : options_(options), device_(device), results_(results), guard_(options.quick ? 0 : 256) {
    Must(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  ~Tester() { cudaStreamDestroy(stream_); }

  void Test(const CudaCase& spec, unsigned seed) {
    Fixture f(spec, seed, guard_, &workspace_, stream_);
    const Problem& p = f.GetProblem();
    name_ = Describe(spec);
    if (p.m > 0 && p.m * p.n * p.k <= 1 << 20 && !f.ReferenceAgrees(seed % p.m))
      results_->Fail("reference", name_ + ": the device's reference is not the host's");
    const Packing packing = ChoosePacking(p, device_);
    DeviceBuffer packed = Scratch(PackedBytes(p, packing));
    Problem any_rows = p;
    any_rows.m = p.m + 77;  // does not matter here
    if (!Succeeds("Pack", Pack(any_rows, f.GetOperands(), packing, packed.Data(), stream_))) return;
    bool first = true;
    for (const Plan& plan : Plans(p, packing, spec.input_aligned)) {
      TestPlan(f, spec, plan, packing, packed, first);
      first = false;
    }
    if (!f.InputsUnchanged()) results_->Fail("inputs", name_ + ": the input or the weights were written to");
  }

 private:
  // MakePlan's first, then each other one that may be chosen.
  std::vector<Plan> Plans(const Problem& p, Packing packing, bool aligned) {
    std::vector<Plan> plans = {MakePlan(p, device_, packing, aligned)};
    for (const Plan& plan : Candidates(p, device_, packing, aligned))
      if (std::find(plans.begin(), plans.end(), plan) == plans.end() &&
          Serves(plan, p, device_, packing, aligned))
        plans.push_back(plan);
    const Plan generic;  // serves everything
    if (std::find(plans.begin(), plans.end(), generic) == plans.end()) plans.push_back(generic);
    return plans;
  }

  // Null where there is nothing, as ONNX Runtime has it.
  DeviceBuffer Scratch(size_t bytes) {
    if (bytes == 0) return {};
    DeviceBuffer b(bytes, 1, true, guard_);
    b.Poison(stream_);
    return b;
  }

  bool Succeeds(const char* what, cudaError_t error) {
    if (error == cudaSuccess) return true;
    results_->Fail("errors", name_ + ": " + what + ": " + cudaGetErrorString(error));
    cudaGetLastError();  // or the next call would report it again
    return false;
  }
  void Synchronise() { Must(cudaStreamSynchronize(stream_), name_.c_str()); }

  Report* NewReport() {
    Report zero = {};
    zero.first = ~0ull;
    Report* report = workspace_.report.Get(1);
    Must(cudaMemcpyAsync(report, &zero, sizeof zero, cudaMemcpyHostToDevice, stream_), "report");
    return report;
  }
  Report Read() {
    Report report;
    Must(cudaMemcpyAsync(&report, workspace_.report.Get(1), sizeof report, cudaMemcpyDeviceToHost, stream_),
         "report");
    Synchronise();
    return report;
  }

  void TestPlan(Fixture& f, const CudaCase& spec, const Plan& plan, Packing packing,
                const DeviceBuffer& packed, bool first) {
    const Problem& p = f.GetProblem();
    family_ = FamilyName(plan);
    name_ = Describe(spec) + " [" + ToString(plan) + "]";
    if (options_.verbose) std::printf("%s\n", name_.c_str()), std::fflush(stdout);
    Outputs outputs(f.MutableCase(), spec, guard_);
    Operands o = f.GetOperands();
    outputs.SetIn(&o);
    DeviceBuffer scratch = Scratch(ScratchBytes(p, plan));
    const auto run = [&](const Operands& operands, const void* weights) {
      return Run(p, operands, plan, packing, weights, scratch.Data(), stream_);
    };
    outputs.Poison(stream_);
    if (!Succeeds("Run", run(o, packed.Data()))) return;
    Check(f, o, ArithmeticOf(p, o, plan, packing), outputs, {&packed, &scratch});
    outputs.Save(stream_);
    if (options_.once || (options_.quick && !first)) return;

    // Scratch and outputs are dirty from here on, as they are in a session.
    Repeat("a second run", outputs, [&] { return run(o, packed.Data()); });
    if (first) {
      DeviceBuffer again = Scratch(PackedBytes(p, packing));
      for (int i = 0; i < 3; ++i) {
        again.Poison(stream_);
        Repeat("packed anew for the call", outputs, [&] {
          const cudaError_t e = Pack(p, o, packing, again.Data(), stream_);
          return e ? e : run(o, again.Data());
        });
      }
      Captured("packed and run in a graph", outputs, nullptr, [&] {
        const cudaError_t e = Pack(p, o, packing, again.Data(), stream_);
        return e ? e : run(o, again.Data());
      });
    }
    if (p.m < 2 || p.k == 0) {
      Captured("a graph", outputs, nullptr, [&] { return run(o, packed.Data()); });
      return;
    }
    // Calls behind each other share scratch memory, and a kernel may start before the one before it ends.
    Outputs others(f.MutableCase(), spec, guard_);
    Operands moved = f.GetOperands();
    others.SetIn(&moved);
    moved.input = f.MovedInput();
    others.Poison(stream_);
    if (!Succeeds("Run", run(moved, packed.Data()))) return;
    Synchronise();
    others.Save(stream_);
    const auto alternate = [&] {
      for (int i = 0; i < 2; ++i) {
        if (const cudaError_t e = run(moved, packed.Data())) return e;
        if (const cudaError_t e = run(o, packed.Data())) return e;
      }
      return run(moved, packed.Data());
    };
    others.Poison(stream_);
    Repeat("calls behind each other", outputs, alternate, &others);
    Captured("calls behind each other in a graph", outputs, &others, alternate);
  }

  void Check(Fixture& f, const Operands& o, const Arithmetic& arithmetic, Outputs& outputs,
             std::initializer_list<const DeviceBuffer*> memory) {
    Synchronise();
    const Case& c = f.GetCase();
    Report* report = NewReport();
    if (o.norm != nullptr) {
      CheckNorm check{f.GetReference(), report, o.norm};
      CheckOne("norm", c.p.m * c.p.k, check);
    }
    CheckGuards guards;
    guards.changed = &report->changed;
    outputs.Each([&](const DeviceBuffer& b) { guards.Add(b); });
    for (const DeviceBuffer* b : memory) guards.Add(*b);
    ForEach(guards.count * CheckGuards::kBytes, stream_, guards);
    int64_t first = 0;
    for (size_t s = 0; s < c.splits.size(); first += c.splits[s], ++s) {
      if (o.y[s] == nullptr || c.splits[s] == 0) continue;
      CheckOutput check{f.GetReference(), report, o.y[s], first, c.splits[s], arithmetic, f.Kinds()};
      CheckOne("y" + std::to_string(s), c.p.m * c.splits[s], check);
    }
    const Report found = Read();
    if (found.changed > 0)
      results_->Fail(family_, name_ + ": " + std::to_string(found.changed) + " guard bytes written");
    double worst;
    std::memcpy(&worst, &found.worst, sizeof worst);
    results_->Add(family_, worst);
    CheckRms(c, found, arithmetic.rows_rounded || (c.p.tw == DType::kInt8 && arithmetic.operand > 0));
  }

  template <typename CheckType>
  void CheckOne(const std::string& output, int64_t count, const CheckType& check) {
    ForEach(count, stream_, Checked<CheckType>{check});
    Report found = Read();
    if (found.failures == 0) return;
    ForEach(1, stream_, Detail<CheckType>{check});
    found = Read();
    char text[200];
    const int64_t width = count / check.p.m, at = static_cast<int64_t>(found.first);
    std::snprintf(
        text, sizeof text, ": %llu of %lld of %s are wrong; [%lld,%lld] is %.9g, expected %.9g +- %.3g",
        found.failures, static_cast<long long>(count), output.c_str(), static_cast<long long>(at / width),
        static_cast<long long>(at % width), found.got, found.wanted, found.bound);
    results_->Fail(family_, name_ + text);
    const unsigned long long none = 0, last = ~0ull;
    Report* report = check.report;
    Must(cudaMemcpyAsync(&report->failures, &none, sizeof none, cudaMemcpyHostToDevice, stream_), "report");
    Must(cudaMemcpyAsync(&report->first, &last, sizeof last, cudaMemcpyHostToDevice, stream_), "report");
    Synchronise();
  }

  // In the mean over a case, how much more the fused form may lose than the unfused one. 1.2 leaves room for
  // chance, 1.4 for the few independent roundings of an outlier. Where rows or gamma are rounded beside the
  // weights, two errors meet where the unfused form of these cases has one, and one row's outlier meets one
  // of each. Beside a large mean (64 deviations here), sums over rows as they come lose digits: OPERATOR.md
  // states this bound.
  static double RmsLimit(RowKind kind, bool both_rounded) {
    if (kind == kLargeMeanRow) return 3;
    if (kind == kOutlierRow) return both_rounded ? 1.8 : 1.4;
    return both_rounded ? 1.4 : 1.2;
  }

  // Given at least 1000 results and enough independently rounded weights. The unfused form's error is
  // the larger of what it is here and what is to be expected of it, for where there are few rows its own
  // roundings are few. Rows with one outlier have one term that outweighs all others, hence as few
  // independent roundings as there are columns.
  void CheckRms(const Case& c, const Report& found, bool both_rounded) {
    if (c.p.activation_quant || c.p.k < 64 || c.p.k * c.p.n < 2048) return;
    for (int kind : {kPlainRow, kLargeMeanRow, kOutlierRow}) {
      const auto& k = found.kind[kind];
      if (k.count < 1000 || (kind == kOutlierRow && c.p.n < 512)) continue;
      const double unfused = std::max(k.unfused, k.expected), ratio = std::sqrt(k.fused / unfused);
      static constexpr const char* kNames[] = {"plain rows", "rows with a large mean",
                                               "rows with an outlier"};
      results_->AddRatio(family_, ratio, name_ + ", " + kNames[kind]);
      if (ratio <= RmsLimit(static_cast<RowKind>(kind), both_rounded)) continue;
      char text[160];
      std::snprintf(text, sizeof text, ": RMS error of %s is %.3f times the unfused form's (%.3g, %.3g)",
                    kNames[kind], ratio, std::sqrt(k.fused / k.count), std::sqrt(unfused / k.count));
      results_->Fail(family_, name_ + text);
    }
  }

  template <typename Call>
  void Repeat(const char* what, Outputs& outputs, const Call& call, Outputs* others = nullptr) {
    outputs.Poison(stream_);
    if (Succeeds(what, call())) Same(what, outputs, others);
  }

  void Same(const char* what, Outputs& outputs, Outputs* others) {
    Synchronise();
    Report* report = NewReport();
    outputs.Compare(&report->different, stream_);
    if (others != nullptr) others->Compare(&report->different, stream_);
    const auto different = Read().different;
    if (different > 0)
      results_->Fail(family_, name_ + ": " + what + " differs in " + std::to_string(different) + " bytes");
  }

  template <typename Call>
  void Captured(const char* what, Outputs& outputs, Outputs* others, const Call& call) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    Must(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    const cudaError_t called = call();
    const bool captured = Succeeds(what, cudaStreamEndCapture(stream_, &graph)) && Succeeds(what, called);
    if (captured && Succeeds(what, cudaGraphInstantiate(&executable, graph, 0))) {
      for (int replay = 0; replay < 2; ++replay) {
        outputs.Poison(stream_);
        if (others != nullptr) others->Poison(stream_);
        if (Succeeds(what, cudaGraphLaunch(executable, stream_))) Same(what, outputs, others);
      }
    }
    if (executable != nullptr) cudaGraphExecDestroy(executable);
    if (graph != nullptr) cudaGraphDestroy(graph);
  }

  const Options& options_;
  const cuda::Device device_;
  Results* results_;
  const size_t guard_;
  cudaStream_t stream_ = nullptr;
  Workspace workspace_;
  std::string name_, family_;
};

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!Parse(argc, argv, &options)) return 2;
  std::printf("seed %u (pass it as the argument to repeat)\n", options.seed);
  const std::vector<CudaCase> all = CudaCases(options.seed, options.quick);
  std::vector<size_t> chosen;
  for (size_t i = options.part; i < all.size(); i += options.parts)
    if (options.filter.empty() || Describe(all[i]).find(options.filter) != std::string::npos)
      chosen.push_back(i);
  if (options.list) {
    for (size_t i : chosen) std::printf("%s\n", Describe(all[i]).c_str());
    std::printf("%zu cases\n", chosen.size());
    return 0;
  }
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("skipped: no CUDA device\n");
    return 0;
  }
  cuda::Device device;
  Must(GetDevice(0, &device), "GetDevice");
  std::printf("sm_%d, %d multiprocessors, %zu cases\n", device.architecture, device.multiprocessors,
              chosen.size());
  if (chosen.empty()) return 2;  // a filter that matches nothing tests nothing
  Results results;
  std::atomic<size_t> next{0};
  const auto work = [&] {
    Tester tester(options, device, &results);
    // Each case's inputs depend on the seed and its place in the list alone.
    for (size_t i; (i = next++) < chosen.size();)
      tester.Test(all[chosen[i]], options.seed + 7919u * static_cast<unsigned>(chosen[i]));
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < options.threads; ++t) threads.emplace_back(work);
  work();
  for (std::thread& t : threads) t.join();
  const int code = results.Print(chosen.size());
  return !options.quick && options.filter.empty() && !PacksFloats() ? 1 : code;
}
