// The CUDA kernels behind a C interface, for scripts/bench_cuda.py. Device pointers come from the caller;
// nothing here allocates device memory or synchronises. Errors are cudaError_t values.
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "cuda/qkv_gemm_cuda.h"

using namespace qkvgemm;

namespace {

struct Op {
  Problem problem;
  std::vector<int64_t> splits;
  cuda::Device device;
  cuda::Packing packing;
};

Problem WithRows(const Op& op, int64_t m) {
  Problem p = op.problem;
  p.m = m;
  return p;
}

std::vector<cuda::Plan> PlansOf(const Op& op, int64_t m, bool aligned) {
  return Candidates(WithRows(op, m), op.device, op.packing, aligned);
}

}  // namespace

extern "C" {

// Types as in ops/problem.h: 0 float, 1 float16, 2 bfloat16, 3 int8; norm: 0 LayerNorm, 1 RMSNorm, 2 none.
struct qkvgemm_problem {
  int64_t k, n, num_splits;
  const int64_t* splits;
  int32_t type, weight_type, vector_type, norm;
  float epsilon;
  int32_t transposed, activation_quant;
  int64_t scale_groups;
};

struct qkvgemm_operands {
  const void *input, *weight, *gamma, *beta, *bias, *scale;
  void* const* y;
};

// Null where there is no such device. A host object: free it by qkvgemm_destroy.
__attribute__((visibility("default"))) void* qkvgemm_create(const qkvgemm_problem* in, int ordinal) {
  auto op = new Op;
  op->splits.assign(in->splits, in->splits + in->num_splits);
  Problem& p = op->problem;
  p.k = in->k, p.n = in->n;
  p.t = static_cast<DType>(in->type), p.tw = static_cast<DType>(in->weight_type);
  p.gamma_type = p.beta_type = p.bias_type = static_cast<DType>(in->vector_type);
  p.norm = static_cast<NormType>(in->norm);
  p.epsilon = in->epsilon;
  p.transposed = in->transposed != 0, p.activation_quant = in->activation_quant != 0;
  if (p.tw == DType::kInt8) p.scale_layout = ScaleLayout::kColumnGroups, p.scale_groups = in->scale_groups;
  p.splits = op->splits.data(), p.num_splits = in->num_splits;
  if (cuda::GetDevice(ordinal, &op->device) != cudaSuccess) {
    delete op;
    return nullptr;
  }
  op->packing = ChoosePacking(p, op->device);
  return op;
}

__attribute__((visibility("default"))) void qkvgemm_destroy(void* op) { delete static_cast<Op*>(op); }

// The first plan is the one that is taken where nothing is timed.
__attribute__((visibility("default"))) int qkvgemm_plan_count(const void* op, int64_t m, int aligned) {
  return static_cast<int>(PlansOf(*static_cast<const Op*>(op), m, aligned != 0).size());
}

__attribute__((visibility("default"))) void qkvgemm_plan_name(const void* op, int64_t m, int aligned,
                                                              int plan, char* name, size_t capacity) {
  const std::string text = ToString(PlansOf(*static_cast<const Op*>(op), m, aligned != 0).at(plan));
  if (capacity == 0) return;
  std::strncpy(name, text.c_str(), capacity - 1);
  name[capacity - 1] = '\0';
}

__attribute__((visibility("default"))) size_t qkvgemm_packed_bytes(const void* op) {
  const Op& o = *static_cast<const Op*>(op);
  return PackedBytes(o.problem, o.packing);
}

__attribute__((visibility("default"))) size_t qkvgemm_scratch_bytes(const void* op, int64_t m, int aligned,
                                                                    int plan) {
  const Op& o = *static_cast<const Op*>(op);
  return ScratchBytes(WithRows(o, m), PlansOf(o, m, aligned != 0).at(plan));
}

static Operands Convert(const qkvgemm_operands& in) {
  Operands o;
  o.input = in.input, o.weight = in.weight, o.gamma = in.gamma, o.beta = in.beta, o.bias = in.bias;
  o.scale = in.scale, o.y = in.y;
  return o;
}

__attribute__((visibility("default"))) int qkvgemm_pack(const void* op, const qkvgemm_operands* operands,
                                                        void* packed, void* stream) {
  const Op& o = *static_cast<const Op*>(op);
  return Pack(o.problem, Convert(*operands), o.packing, packed, static_cast<cudaStream_t>(stream));
}

__attribute__((visibility("default"))) int qkvgemm_run(const void* op, int64_t m,
                                                       const qkvgemm_operands* operands, int aligned,
                                                       int plan, const void* packed, void* scratch,
                                                       void* stream) {
  const Op& o = *static_cast<const Op*>(op);
  return Run(WithRows(o, m), Convert(*operands), PlansOf(o, m, aligned != 0).at(plan), o.packing, packed,
             scratch, static_cast<cudaStream_t>(stream));
}

// A kernel that does nothing, for what a launch costs in a graph.
__global__ void EmptyKernel() {}
__attribute__((visibility("default"))) int qkvgemm_empty(void* stream) {
  EmptyKernel<<<1, 32, 0, static_cast<cudaStream_t>(stream)>>>();
  return cudaGetLastError();
}

}  // extern "C"
