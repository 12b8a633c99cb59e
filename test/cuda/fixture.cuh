// One case on the device: its operands, its reference, its outputs.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "cuda/qkv_gemm_cuda.h"
#include "test/cuda/cases.h"
#include "test/cuda/reference.cuh"

namespace qkvgemm::support {

// Memory that cases use one after the other.
struct Workspace {
  DeviceArray<double> row, quantised, input, weight, largest, step, widest, bias, unfused;
  DeviceArray<float> unfused_row, unfused_weight;
  DeviceArray<Sums> sums;
  DeviceArray<uint8_t> near_tie, kinds, saved;
  DeviceArray<Report> report;
};

// Outputs of a call and a copy of their bytes.
class Outputs {
 public:
  Outputs(Case& c, const CudaCase& spec, size_t guard) {
    const size_t element = SizeOf(c.p.t);
    if (c.p.norm != NormType::kNone && c.emit_norm)
      norm_.emplace_back(static_cast<size_t>(c.p.m * c.p.k) * element, element, spec.outputs_aligned, guard);
    for (size_t s = 0; s < c.splits.size(); ++s) {
      y_.emplace_back(static_cast<size_t>(c.p.m * c.splits[s]) * element, element, spec.outputs_aligned,
                      guard);
      pointers_.push_back(spec.unwanted >> s & 1 ? nullptr : y_.back().Data());
    }
    size_t bytes = 0;
    Each([&](const DeviceBuffer& b) { bytes += b.Bytes(); });
    saved_ = DeviceBuffer(bytes, 1, true, 0);
  }
  void SetIn(Operands* o) {
    o->norm = norm_.empty() ? nullptr : norm_[0].Data();
    o->y = pointers_.data();
  }
  void Poison(cudaStream_t stream) {
    Each([&](const DeviceBuffer& b) { b.Poison(stream); });
  }
  void Save(cudaStream_t stream) {
    auto* to = static_cast<uint8_t*>(saved_.Data());
    Each([&](const DeviceBuffer& b) {
      Must(cudaMemcpyAsync(to, b.Data(), b.Bytes(), cudaMemcpyDeviceToDevice, stream), "copy of outputs");
      to += b.Bytes();
    });
  }
  // Adds the number of bytes that are not as saved.
  void Compare(unsigned long long* different, cudaStream_t stream) {
    auto* saved = static_cast<const uint8_t*>(saved_.Data());
    Each([&](const DeviceBuffer& b) {
      ForEach(static_cast<int64_t>(b.Bytes()), stream,
              CompareBytes{static_cast<const uint8_t*>(b.Data()), saved, different});
      saved += b.Bytes();
    });
  }
  template <typename Visit>
  void Each(const Visit& visit) {
    for (DeviceBuffer& b : norm_) visit(b);
    for (DeviceBuffer& b : y_) visit(b);
  }

 private:
  std::vector<DeviceBuffer> norm_, y_;
  std::vector<void*> pointers_;
  DeviceBuffer saved_;
};

class Fixture {
 public:
  Fixture(const CudaCase& spec, unsigned seed, size_t guard, Workspace* workspace, cudaStream_t stream)
      : spec_(spec), c_(spec_.c), guard_(guard), stream_(stream), w_(workspace) {
    std::mt19937 random(seed);
    c_.Fill(random);
    Operands host = c_.GetOperands();
    const bool aligned = spec_.outputs_aligned;
    const auto up = [&](Tensor& t, DType type, const void*& pointer, bool to_256) {
      if (pointer == nullptr) return;
      const size_t bytes = static_cast<size_t>(t.Count()) * SizeOf(type);
      uploads_.emplace_back(bytes, SizeOf(type), to_256, guard_);
      uploads_.back().Poison(stream_);
      Must(cudaMemcpyAsync(uploads_.back().Data(), pointer, bytes, cudaMemcpyHostToDevice, stream_),
           "upload");
      pointer = uploads_.back().Data();
    };
    uploads_.reserve(8);
    up(c_.x, c_.p.t, host.input, spec_.input_aligned);
    up(c_.w, c_.p.tw, host.weight, aligned);
    up(c_.g, c_.p.gamma_type, host.gamma, aligned);
    up(c_.b, c_.p.beta_type, host.beta, aligned);
    up(c_.c, c_.p.bias_type, host.bias, aligned);
    up(c_.s, c_.p.scale_type, host.scale, aligned);
    up(c_.z, DType::kInt8, host.zero_point, aligned);
    operands_ = host;
    operands_.norm = nullptr, operands_.y = nullptr;
    MakeReference();
  }

  const Case& GetCase() const { return c_; }
  const Problem& GetProblem() const { return c_.p; }
  const Operands& GetOperands() const { return operands_; }
  Case& MutableCase() { return c_; }
  const Reference& GetReference() const { return r_; }
  const uint8_t* Kinds() const { return kinds_; }

  // The input with its rows moved by one: other data of the same kind, as a second call has it.
  const void* MovedInput() {
    const size_t row = static_cast<size_t>(c_.p.k) * SizeOf(c_.p.t),
                 rest = row * static_cast<size_t>(c_.p.m - 1);
    moved_ = DeviceBuffer(row + rest, SizeOf(c_.p.t), spec_.input_aligned, guard_);
    auto* to = static_cast<char*>(moved_.Data());
    const auto* from = static_cast<const char*>(operands_.input);
    Must(cudaMemcpyAsync(to, from + row, rest, cudaMemcpyDeviceToDevice, stream_), "moved input");
    Must(cudaMemcpyAsync(to + rest, from, row, cudaMemcpyDeviceToDevice, stream_), "moved input");
    return moved_.Data();
  }

  // Whether the input and the weights are still what was uploaded.
  bool InputsUnchanged() {
    Tensor* tensors[] = {&c_.x, &c_.w};
    for (int i = 0; i < 2; ++i) {
      std::vector<char> now(uploads_[i].Bytes());
      Must(cudaMemcpy(now.data(), uploads_[i].Data(), now.size(), cudaMemcpyDeviceToHost), "download");
      if (std::memcmp(now.data(), tensors[i]->Data(), now.size()) != 0) return false;
    }
    return true;
  }

  // The device's reference against the host's, which is written apart from it: a row, all columns.
  bool ReferenceAgrees(int64_t row) {
    const Problem& p = c_.p;
    std::vector<Sums> sums(static_cast<size_t>(p.n));
    Must(cudaMemcpyAsync(sums.data(), r_.sums + row * p.n, sums.size() * sizeof(Sums), cudaMemcpyDeviceToHost,
                         stream_),
         "download");
    Must(cudaStreamSynchronize(stream_), "reference");
    std::vector<double> v = c_.NormRow(row);
    double largest = 0;
    for (double e : v) largest = std::max(largest, std::fabs(e));
    const double step = p.activation_quant ? largest / 127.0 : 0;
    for (int64_t n = 0; n < p.n; ++n) {
      double sum = 0, magnitude = 0, ties = 0;
      for (int64_t k = 0; k < p.k; ++k) {
        const double weight = c_.Weight(k, n), e = step > 0 ? std::nearbyint(v[k] / step) * step : v[k];
        sum += e * weight;
        magnitude += std::fabs(e * weight);
        if (step > 0 && NearTie(v[k], step)) ties += std::fabs(weight);
      }
      // Quantised values may fall to either side of a tie, but both must know where that is so.
      if (!(std::fabs(sums[n].sum - sum) <= 1e-9 * magnitude + step * ties)) return false;
      if (!(std::fabs(sums[n].ties - ties) <= 1e-9 * ties)) return false;
    }
    return true;
  }

 private:
  void MakeReference() {
    const Problem& p = c_.p;
    const int64_t mk = p.m * p.k, kn = p.k * p.n, mn = p.m * p.n;
    r_ = Reference{p,
                   operands_,
                   w_->row.Get(mk),
                   w_->quantised.Get(mk),
                   w_->input.Get(mk),
                   w_->unfused_row.Get(mk),
                   w_->near_tie.Get(mk),
                   w_->weight.Get(kn),
                   w_->unfused_weight.Get(kn),
                   w_->largest.Get(p.m),
                   w_->step.Get(p.m),
                   w_->widest.Get(p.n),
                   w_->bias.Get(p.n),
                   w_->sums.Get(mn),
                   w_->unfused.Get(mn)};
    ForEach(p.m, stream_, ReferenceRow{r_});
    ForEach(kn, stream_, ReferenceWeight{r_});
    ForEach(p.n, stream_, ReferenceColumn{r_});
    ForEach(mn, stream_, ReferenceProduct{r_});
    std::vector<uint8_t> kinds(static_cast<size_t>(p.m));
    for (int64_t r = 0; r < p.m; ++r) kinds[static_cast<size_t>(r)] = static_cast<uint8_t>(c_.KindOf(r));
    kinds_ = w_->kinds.Get(p.m);
    Must(cudaMemcpyAsync(w_->kinds.Get(p.m), kinds.data(), kinds.size(), cudaMemcpyHostToDevice, stream_),
         "upload");
    Must(cudaStreamSynchronize(stream_), "reference");
  }

  CudaCase spec_;
  Case& c_;
  size_t guard_;
  cudaStream_t stream_;
  Workspace* w_;
  std::vector<DeviceBuffer> uploads_;
  DeviceBuffer moved_;
  Operands operands_;
  Reference r_;
  const uint8_t* kinds_ = nullptr;
};

}  // namespace qkvgemm::support
