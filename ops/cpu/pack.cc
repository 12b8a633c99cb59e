#include <algorithm>
#include <cstdlib>
#include <cstring>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "ops/cpu/convert.h"
#include "ops/cpu/packed.h"
#include "ops/cpu/parallel.h"

namespace qkvgemm::cpu {
namespace {

size_t RoundUp64(size_t bytes) { return (bytes + 63) / 64 * 64; }

// Elements [k][columns of the panel] out of [K, N] or, transposed, [N, K]; missing columns of the last panel
// become 0.
template <typename T>
void PackPanel(const Problem& p, const void* weight, int64_t panel, int64_t nr, void* target) {
  const char* source = static_cast<const char*>(weight);
  char* out = static_cast<char*>(target);
  const int64_t first = panel * nr;
  const int64_t columns = std::min(nr, p.n - first);
  if (columns < nr) std::memset(out, 0, static_cast<size_t>(p.k * nr) * sizeof(T));
  if (!p.transposed) {
    for (int64_t k = 0; k < p.k; ++k)
      std::memcpy(out + k * nr * sizeof(T), source + (k * p.n + first) * sizeof(T), columns * sizeof(T));
    return;
  }
  // Square blocks, so that both sides stay in cache lines that are in use.
  constexpr int64_t kBlock = 64;
  for (int64_t k0 = 0; k0 < p.k; k0 += kBlock) {
    const int64_t end = std::min(p.k, k0 + kBlock);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = k0; k < end; ++k)
        std::memcpy(out + (k * nr + c) * sizeof(T), source + ((first + c) * p.k + k) * sizeof(T), sizeof(T));
  }
}

float ScaleAt(const Problem& p, const void* scale, int64_t i) {
  const char* at = static_cast<const char*>(scale) + i * static_cast<int64_t>(SizeOf(p.scale_type));
  if (p.scale_type == DType::kFloat16) {
    uint16_t h;
    std::memcpy(&h, at, sizeof h);
    return Float16ToFloat(h);
  }
  float f;
  std::memcpy(&f, at, sizeof f);
  return f;
}

}  // namespace

PackedLayout::PackedLayout(const Problem& problem, Isa isa)
    : nr(TileOf(isa).nr),
      panels((problem.n + nr - 1) / nr),
      padded_n(panels * nr),
      scale_rows(0),
      zero_points(problem.has_zero_point),
      panel_bytes(static_cast<size_t>(problem.k * nr) * SizeOf(problem.tw)) {
  if (problem.scale_layout == ScaleLayout::kColumnGroups) scale_rows = 1;
  if (problem.scale_layout == ScaleLayout::kBlocks) scale_rows = problem.k / problem.scale_block;
  const size_t scale_bytes = static_cast<size_t>(scale_rows * padded_n) * sizeof(float);
  scale_offset = RoundUp64(panel_bytes * static_cast<size_t>(panels));
  zero_offset = scale_offset + RoundUp64(scale_bytes);
  bytes = zero_offset + (zero_points ? RoundUp64(scale_bytes) : 0);
}

Panel PackedLayout::PanelAt(const Problem& problem, const void* packed, int64_t panel) const {
  const char* base = static_cast<const char*>(packed);
  Panel result{};
  result.weight = base + panel_bytes * static_cast<size_t>(panel);
  result.k = problem.k;
  result.tw = problem.tw;
  result.stride = padded_n;
  if (scale_rows > 0) {
    result.scale = reinterpret_cast<const float*>(base + scale_offset) + panel * nr;
    if (zero_points) result.zero_point = reinterpret_cast<const float*>(base + zero_offset) + panel * nr;
    if (problem.scale_layout == ScaleLayout::kBlocks) result.block = problem.scale_block;
  }
  return result;
}

void* AllocatePacked(size_t bytes) {
  // A pass over the weights touches every 4 KB page once: on ordinary pages that is a page walk every 64
  // cache lines, and a nested one on a virtual machine.
  constexpr size_t kHugePage = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHugePage ? kHugePage : 64;
  const size_t size = (std::max<size_t>(bytes, 1) + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, size);
#if defined(MADV_HUGEPAGE)
  if (memory != nullptr && alignment == kHugePage)
    madvise(memory, size, MADV_HUGEPAGE);  // a wish; refusal is fine
#endif
  return memory;
}

size_t PackedBytes(const Problem& problem, Isa isa) { return PackedLayout(problem, isa).bytes; }

void Pack(const Problem& problem, const Operands& operands, Isa isa, const ThreadPool& pool, void* packed) {
  const PackedLayout layout(problem, isa);
  char* base = static_cast<char*>(packed);
  // Without rows there is nothing to pack, and the pointers may be null.
  ParallelFor(pool, problem.k == 0 ? 0 : layout.panels, [&](int64_t panel) {
    void* target = base + layout.panel_bytes * static_cast<size_t>(panel);
    switch (SizeOf(problem.tw)) {
      case 4:
        PackPanel<uint32_t>(problem, operands.weight, panel, layout.nr, target);
        break;
      case 2:
        PackPanel<uint16_t>(problem, operands.weight, panel, layout.nr, target);
        break;
      default:
        PackPanel<uint8_t>(problem, operands.weight, panel, layout.nr, target);
        break;
    }
  });
  if (layout.scale_rows == 0) return;
  auto* scales = reinterpret_cast<float*>(base + layout.scale_offset);
  auto* zeros = reinterpret_cast<float*>(base + layout.zero_offset);
  const auto* zero_point = static_cast<const int8_t*>(operands.zero_point);
  for (int64_t row = 0; row < layout.scale_rows; ++row) {
    for (int64_t n = 0; n < layout.padded_n; ++n) {
      const int64_t to = row * layout.padded_n + n;
      const int64_t column =
          std::min(n, problem.n - 1);  // padding repeats the last column; its weights are 0
      const int64_t from = problem.scale_layout == ScaleLayout::kBlocks
                               ? row * problem.n + column
                               : column / (problem.n / problem.scale_groups);
      scales[to] = ScaleAt(problem, operands.scale, from);
      if (layout.zero_points) zeros[to] = static_cast<float>(zero_point[from]);
    }
  }
}

}  // namespace qkvgemm::cpu
