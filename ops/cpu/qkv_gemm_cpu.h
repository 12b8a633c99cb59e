// CPU kernels of QKVGemm: the launch interface. Knows neither ONNX Runtime nor Node.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "ops/problem.h"

namespace qkvgemm::cpu {

enum class Isa : uint8_t {
  kScalar,
  kAvx2,        // AVX2, FMA, F16C
  kAvxVnni,     // with products of int8
  kAvx512,      // F, BW, DQ, VL
  kAvx512Vnni,  // with products of int8
  kAvx512Bf16,  // with products of int8 and bfloat16
  kAmx,         // the same on matrix registers
  kNeon,        // of 64-bit Arm
  kNeonDot,     // with products of int8
  kNeonI8mm,    // the same of matrices
  kNeonBf16,    // with products of int8 and bfloat16, of matrices
};

// From the slowest to the fastest of a processor.
inline constexpr Isa kAllIsas[] = {Isa::kScalar,     Isa::kAvx2,       Isa::kAvxVnni, Isa::kAvx512,
                                   Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx,     Isa::kNeon,
                                   Isa::kNeonDot,    Isa::kNeonI8mm,   Isa::kNeonBf16};

const char* IsaName(Isa isa);
// Can this processor (and operating system) run it?
bool IsaSupported(Isa isa);
// The best supported instruction set, or the one that `forced` names as IsaName does (null or empty: none
// forced). False and a message for an unknown name or one that the machine lacks.
bool SelectIsa(const char* forced, Isa* isa, std::string* error);

// Runs fn(context, i) for every i in [0, count), in any order, on as many threads as the caller has; returns
// when all are done. `threads` is a hint of how many run at once.
struct ThreadPool {
  void* state = nullptr;
  int threads = 1;
  void (*run)(void* state, size_t count, void (*fn)(void* context, size_t i), void* context) = nullptr;
};

// Pure function of the problem, the instruction set and the thread count: how the work is tiled and spread.
struct Plan;  // defined in ops/cpu/plan.h

// What a plan leaves open, whatever the number of rows. Any choice serves any problem; the default is what is
// estimated to be best.
struct Choice {
  enum class Norm : uint8_t { kBySize, kSerial, kParallel };

  int tasks_per_thread = 4;  // a thread that the system preempts is relieved by the others
  int row_blocks = 1;        // passes over W, in multiples of the fewest
  Norm norm = Norm::kBySize;
  // Ranges of rows, or of K where rows are few, that are tasks of their own; 0: as keeps threads busy.
  int row_parts = 0;
  int depth_parts = 0;

  friend bool operator==(const Choice&, const Choice&) = default;
};
std::string ToString(const Choice& choice);
// The choice that ToString calls so, if it is one of those that are tried.
std::optional<Choice> ParseChoice(std::string_view text);

// Bytes of the packed form of weight + scale + zero_point (64-byte aligned buffer wanted).
size_t PackedBytes(const Problem& problem, Isa isa);
// Memory for packed weights: 64-byte aligned, on huge pages where it is large enough for them. Null when
// there is none; released with std::free.
void* AllocatePacked(size_t bytes);
// Packs operands.weight (and scale, zero_point). `packed` is 64-byte aligned. Problem.m is ignored.
void Pack(const Problem& problem, const Operands& operands, Isa isa, const ThreadPool& pool, void* packed);

// Bytes of scratch that Run needs for this problem (64-byte aligned buffer wanted). `packed_weights` false:
// the weights are not constant and Run gets no packed buffer.
size_t ScratchBytes(const Problem& problem, Isa isa, int threads, bool packed_weights,
                    const Choice& choice = {});
// Computes everything: y splits and, where operands.norm is not null, the normalised input. `packed` comes
// from Pack, or is null (operands.weight is then read). No allocation, no exceptions. m, n or k of 0 are
// allowed (k = 0: y is the bias or 0).
void Run(const Problem& problem, const Operands& operands, const void* packed, Isa isa,
         const ThreadPool& pool, void* scratch, const Choice& choice = {});

}  // namespace qkvgemm::cpu
