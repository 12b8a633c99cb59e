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

// Elements [k / group][columns of the panel][group] out of [K, N] or, transposed, [N, K]; missing columns of
// the last panel and missing k become 0. `flip` is xored into each.
template <typename T, int kGroup>
void PackPanel(const Problem& p, const WeightFormat& format, const void* weight, int64_t panel, int64_t nr,
               T flip, void* target) {
  const char* source = static_cast<const char*>(weight);
  T* out = static_cast<T*>(target);
  const int64_t first = panel * nr;
  const int64_t columns = std::min(nr, p.n - first);
  if (columns < nr || format.k > p.k) std::fill(out, out + format.k * nr, flip);
  const int64_t column_step = p.transposed ? p.k : 1, k_step = p.transposed ? 1 : p.n;
  const char* corner = source + first * column_step * static_cast<int64_t>(sizeof(T));
  const auto put = [&](int64_t k, int64_t c) {
    T element;
    std::memcpy(&element, corner + (c * column_step + k * k_step) * static_cast<int64_t>(sizeof(T)),
                sizeof(T));
    out[k / kGroup * kGroup * nr + c * kGroup + k % kGroup] = static_cast<T>(element ^ flip);
  };
  if (!p.transposed) {
    int64_t k = 0;
    for (; k + kGroup <= p.k; k += kGroup) {
      T rows[kGroup][kMaxNr];  // read in order, written in order
      for (int j = 0; j < kGroup; ++j)
        std::memcpy(rows[j], corner + (k + j) * k_step * static_cast<int64_t>(sizeof(T)),
                    static_cast<size_t>(columns) * sizeof(T));
      for (int64_t c = 0; c < columns; ++c)
        for (int j = 0; j < kGroup; ++j) out[k * nr + c * kGroup + j] = static_cast<T>(rows[j][c] ^ flip);
    }
    for (; k < p.k; ++k)
      for (int64_t c = 0; c < columns; ++c) put(k, c);
    return;
  }
  // Square blocks, so that both sides stay in cache lines that are in use.
  constexpr int64_t kBlock = 64;
  for (int64_t k0 = 0; k0 < p.k; k0 += kBlock) {
    const int64_t end = std::min(p.k, k0 + kBlock);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t k = k0; k < end; ++k) put(k, c);
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
      format(FormatOf(problem, isa)),
      scale_rows(0),
      zero_points(problem.has_zero_point),
      panel_bytes(static_cast<size_t>(format.k * nr) * SizeOf(problem.tw)) {
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
  result.k = format.k;
  result.tw = problem.tw;
  result.group = format.group;
  result.is_unsigned = format.is_unsigned;
  result.stride = padded_n;
  if (scale_rows > 0) {
    result.scale = reinterpret_cast<const float*>(base + scale_offset) + panel * nr;
    if (zero_points) result.zero_point = reinterpret_cast<const float*>(base + zero_offset) + panel * nr;
    if (problem.scale_layout == ScaleLayout::kBlocks) {
      result.block = problem.scale_block;
    } else if (problem.tw == DType::kInt8 && format.group > 1 && format.k > kMaxInt8Depth) {
      result.block = kMaxInt8Depth, result.stride = 0;  // int32 sums of parts, all with the column's scale
    }
  }
  return result;
}

void* AllocatePacked(size_t bytes) {
  // A pass over the weights touches every 4 KB page once: on ordinary pages that is a page walk every 64
  // cache lines, and a nested one on a virtual machine.
  constexpr size_t kHugePage = size_t{2} << 20;
  void* memory = nullptr;
  if (posix_memalign(&memory, bytes >= 2 * kHugePage ? kHugePage : 64, std::max<size_t>(bytes, 1)) != 0)
    return nullptr;
#if defined(MADV_HUGEPAGE)
  // A wish, and refusal is fine. What fills no huge page would take one all the same.
  if (bytes >= 2 * kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
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
    const auto pack = [&]<typename T, int kGroup>(T flip) {
      PackPanel<T, kGroup>(problem, layout.format, operands.weight, panel, layout.nr, flip, target);
    };
    const int group = layout.format.group;
    switch (SizeOf(problem.tw)) {
      case 4:
        return pack.template operator()<uint32_t, 1>(0);
      case 2:
        return group == 1   ? pack.template operator()<uint16_t, 1>(0)
               : group == 2 ? pack.template operator()<uint16_t, 2>(0)
                            : pack.template operator()<uint16_t, 4>(0);
      default:
        const uint8_t flip = layout.format.is_unsigned ? 0x80 : 0;
        return group == 1   ? pack.template operator()<uint8_t, 1>(0)
               : group == 4 ? pack.template operator()<uint8_t, 4>(flip)
                            : pack.template operator()<uint8_t, 8>(flip);
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
