// Products on matrix registers (AMX): eight of 16 rows by 64 bytes. Part of qkv_gemm_amx.cc, around the body
// in qkv_gemm-inl.h.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ops/cpu/multiply-inl.h"
#include "ops/cpu/peak-inl.h"

namespace qkvgemm::cpu {
namespace {

constexpr int kMatrixBytes = 64;  // of a row of a matrix register

// Registers 0 to 3 hold sums as [rows][columns], 4 and 5 rows, 6 and 7 W. Their numbers must be literals:
// g++'s intrinsics put them into the instruction's text.
template <Operand kOperand, int kSum>
[[gnu::always_inline]] inline void MultiplyMatrices() {
  if constexpr (kOperand == Operand::kBFloat16) {
    if constexpr (kSum == 0) _tile_dpbf16ps(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (kSum == 2) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kSum == 3) _tile_dpbf16ps(3, 5, 7);
  } else {  // rows are signed, packed weights are not
    if constexpr (kSum == 0) _tile_dpbsud(0, 4, 6);
    if constexpr (kSum == 1) _tile_dpbsud(1, 4, 7);
    if constexpr (kSum == 2) _tile_dpbsud(2, 5, 6);
    if constexpr (kSum == 3) _tile_dpbsud(3, 5, 7);
  }
}

// What was written lies in memory from here on: g++'s intrinsics do not say that they read it.
[[gnu::always_inline]] inline void Written(const void* memory) { asm volatile("" ::"r"(memory) : "memory"); }

// Register tiles of four matrix registers, 32 x 32; with up to 16 rows, of two.
class MatrixTiles {
 public:
  static constexpr int kMr = kMatrixRows;
  static constexpr int kLanesOfK = kMatrixKBlock;

  MatrixTiles() = default;
  MatrixTiles(const MatrixTiles&) = delete;
  MatrixTiles& operator=(const MatrixTiles&) = delete;
  ~MatrixTiles() {
    if (rows_ != 0) _tile_release();
  }

  template <Operand kOperand>
  void Multiply(const Panel& panel, W form, int64_t depth, int count, MicroArguments& arguments) {
    Configure(count);
    arguments.groups = depth / DepthOf(kOperand);
    // What is asked for while a step computes.
    const char* ahead = arguments.next;
    int64_t bytes = form == W::kCached ? 0 : arguments.next_step * kMatrixRun;
    if (form == W::kPacked) {
      ahead = static_cast<const char*>(arguments.weight) + kStreamAhead;
      bytes = kTile.nr * kMatrixRun * DepthOf(kOperand) * static_cast<int64_t>(SizeOf(panel.tw));
    }
    if (count > kMatrixRun) {
      Sum<kOperand, true>(arguments, count, ahead, bytes);
    } else {
      Sum<kOperand, false>(arguments, count, ahead, bytes);
    }
  }

  void Configure(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    struct alignas(64) {
      uint8_t palette = 1;
      uint8_t start_row = 0;
      uint8_t reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    const auto first = static_cast<uint8_t>(std::min(rows, kMatrixRun));
    const auto second = static_cast<uint8_t>(rows - first);
    const uint8_t of_register[] = {first, first, second, second, first, second, kMatrixRun, kMatrixRun};
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = of_register[i];
      config.row_bytes[i] = of_register[i] == 0 ? 0 : kMatrixBytes;
    }
    Written(&config);
    _tile_loadconfig(&config);
  }

 private:
  template <Operand kOperand, bool kBoth>
  static void Sum(const MicroArguments& arguments, int count, const char* ahead, int64_t bytes) {
    constexpr int kStride = kTile.nr * 4;
    alignas(64) uint32_t part[kMatrixRows * kTile.nr];
    const bool scaled = arguments.scale != nullptr;
    uint32_t* sums = scaled ? part : arguments.sums;
    constexpr int kSecond = kMatrixRun * kTile.nr;
    Written(sums);
    if (arguments.accumulate && !scaled) {
      _tile_loadd(0, sums, kStride);
      _tile_loadd(1, sums + kMatrixRun, kStride);
      if constexpr (kBoth) {
        _tile_loadd(2, sums + kSecond, kStride);
        _tile_loadd(3, sums + kSecond + kMatrixRun, kStride);
      }
    } else {
      _tile_zero(0);
      _tile_zero(1);
      if constexpr (kBoth) {
        _tile_zero(2);
        _tile_zero(3);
      }
    }
    const uint32_t* a = arguments.rows;
    const auto* w = static_cast<const char*>(arguments.weight);
    for (int64_t i = 0; i < arguments.groups; i += kMatrixRun) {
      _tile_loadd(6, w, kStride);
      _tile_loadd(4, a, kMatrixBytes);
      MultiplyMatrices<kOperand, 0>();
      _tile_loadd(7, w + kMatrixBytes, kStride);
      MultiplyMatrices<kOperand, 1>();
      if constexpr (kBoth) {
        _tile_loadd(5, a + kMatrixRun * kMatrixRun, kMatrixBytes);
        MultiplyMatrices<kOperand, 2>();
        MultiplyMatrices<kOperand, 3>();
      }
      for (int64_t line = 0; line < bytes; line += 64) __builtin_prefetch(ahead + line, 0, kIntoL2);
      ahead += bytes;
      a += count * kMatrixRun;
      w += kMatrixRun * kStride;
    }
    _tile_stored(0, sums, kStride);
    _tile_stored(1, sums + kMatrixRun, kStride);
    if constexpr (kBoth) {
      _tile_stored(2, sums + kSecond, kStride);
      _tile_stored(3, sums + kSecond + kMatrixRun, kStride);
    }
    if (!scaled) return;
    const auto leave = [&]<Leave kLeave>() {
      for (int r = 0; r < count; ++r)
        for (int v = 0; v < kVectors; ++v)
          LeaveSum<kOperand, kLeave>(arguments, r, v * kLanes,
                                     Product<kOperand>::LoadSum(part + r * kTile.nr + v * kLanes));
    };
    if (kOperand == Operand::kInt8 && arguments.zero_point != nullptr)
      return leave.template operator()<Leave::kScaledLessZeroPoint>();
    leave.template operator()<Leave::kScaled>();
  }

  int rows_ = 0;  // that the registers are configured for
};

void MultiplyOnMatrices(const Rows& rows, const Panel& panel, const Part& part, bool widen, float* c,
                        const Receiver* receiver) {
  if (!rows.matrix) return MultiplyVectors(rows, panel, part, widen, c, receiver);
  MatrixTiles tiles;
  if (rows.operand == Operand::kBFloat16)
    return MultiplyWith<Operand::kBFloat16>(rows, panel, part, widen, c, receiver, tiles);
  MultiplyWith<Operand::kInt8>(rows, panel, part, widen, c, receiver, tiles);
}

template <Operand kOperand>
int64_t SpinMatrices(int64_t steps) {
  MatrixTiles tiles;
  tiles.Configure(kMatrixRows);
  for (int64_t i = 0; i < steps; ++i) {
    MultiplyMatrices<kOperand, 0>();
    MultiplyMatrices<kOperand, 1>();
    MultiplyMatrices<kOperand, 2>();
    MultiplyMatrices<kOperand, 3>();
  }
  return steps * kMatrixRows * kTile.nr * kMatrixRun * DepthOf(kOperand);
}

int64_t SpinOnMatrices(Operand operand, int64_t steps, uint32_t* sink) {
  if (operand == Operand::kBFloat16) return SpinMatrices<Operand::kBFloat16>(steps);
  if (operand == Operand::kInt8) return SpinMatrices<Operand::kInt8>(steps);
  return Spin(operand, steps, sink);
}

}  // namespace
}  // namespace qkvgemm::cpu
