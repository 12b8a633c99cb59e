// The packed form of W: column panels of the register tile's width, each [K / group][nr][group] in W's own
// element type, so that a pass over a panel reads memory in order. Behind them, for int8, the scales and zero
// points as float, padded alike.
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/cpu/kernels.h"
#include "ops/cpu/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cpu {

struct PackedLayout {
  int64_t nr;
  int64_t panels;
  int64_t padded_n;  // panels * nr
  WeightFormat format;
  int64_t scale_rows;  // 0: none, 1: per column, K / B: blocks
  bool zero_points;
  size_t panel_bytes;
  size_t scale_offset;  // bytes from the start
  size_t zero_offset;
  size_t bytes;  // of everything; a multiple of 64

  PackedLayout(const Problem& problem, Isa isa);
  Panel PanelAt(const Problem& problem, const void* packed, int64_t panel) const;
};

}  // namespace qkvgemm::cpu
