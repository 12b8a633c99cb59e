// How packed weights lie in memory; shared by what packs them and the families that read them.
//
// W is cut into pieces of 64 columns by 128 bytes along K, and stored [N / 64][K / (128 bytes)][piece], so
// that 64 columns are one stream. Behind the pieces lies one Column for each column, padded ones included.
//
// kHalf: a piece of 8 KB has 64 columns by 64 elements. The 128 bytes of column c are eight 16-byte chunks;
// chunk i lies at (c * 8 + (i ^ c % 8)) * 16, which is the 128-byte swizzle of wgmma and keeps ldmatrix free
// of bank conflicts.
//
// kInt8Activations, kTf32: the same with 128 int8 or 32 floats a column.
//
// kInt8: a piece of 4 KB has 64 columns by 64 int8, in the order of the A fragments of m16n8k16 and wgmma. At
// ((w * 2 + h) * 32 + lane) * 16 lie the 16 bytes that lane (g = lane / 4, t = lane % 4) feeds to steps 2h
// and 2h + 1 of 16 k: for each step the columns c = 16 w + g and c + 8 at k = 2t and 2t + 1, then both
// columns at k + 8 and k + 9. Bytes are q + 128. Behind the Columns lie gamma's factors, by which the bytes
// are multiplied as they are widened to T: 128 bytes for each 64 of k, at t * 32 those of lanes t, for each
// step of 16 k those at k = 2t, 2t + 1, 2t + 8 and 2t + 9.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/plan.h"
#include "ops/problem.h"

namespace qkvgemm::cuda {

constexpr int kPieceColumns = 64;
constexpr int kPieceRowBytes = 128;

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

// y = rstd * (scale * sum(x * w) - mean * column_sum) + constant, with the row's mean and rstd.
struct alignas(16) Column {
  float scale;
  float column_sum;  // scale * sum(w) over the packed w
  float constant;    // beta * W + bias
  float unused;
};

constexpr int PieceDepth(Packing packing) {
  return packing == Packing::kInt8Activations ? 128 : packing == Packing::kTf32 ? 32 : 64;
}
constexpr int64_t PieceBytes(Packing packing) { return packing == Packing::kInt8 ? 4096 : 8192; }
constexpr int64_t PieceRows(const Problem& p) { return CeilDiv(p.n, kPieceColumns); }
constexpr int64_t PiecesPerRow(const Problem& p, Packing packing) {
  return CeilDiv(p.k, PieceDepth(packing));
}
constexpr int64_t WeightBytes(const Problem& p, Packing packing) {
  return PieceRows(p) * PiecesPerRow(p, packing) * PieceBytes(packing);
}
constexpr int64_t ColumnBytes(const Problem& p) {
  return PieceRows(p) * kPieceColumns * static_cast<int64_t>(sizeof(Column));
}
constexpr int kFactorBytes = 128;  // of a piece
// gamma's factors of bfloat16 are at most 2^kBFloat16FactorExponent, and a byte is widened to
// 2^-kBFloat16WideningExponent of its value: what comes out is at most 1.
constexpr int kBFloat16FactorExponent = 126, kBFloat16WideningExponent = 133;
constexpr int64_t FactorBytes(const Problem& p, Packing packing) {
  return packing == Packing::kInt8 ? PiecesPerRow(p, packing) * kFactorBytes : 0;
}

// What the matrix families read as rows, in scratch memory unless it is the input itself: RowStatistics of
// each row and of those behind the last that a tile may have, then the rows where they are copied.
struct RowStatistics {
  float mean, rstd;  // kQuantised: 0 and the row's scale; kNormalised: 0 and 1
};
constexpr int64_t kMostTileRows = 256;
// Counters of shared statistics: rows claimed, and rows done of each tile, which have 64 rows at least.
constexpr size_t CounterBytes(const Problem& p) {
  return static_cast<size_t>(1 + CeilDiv(p.m, 64)) * sizeof(uint32_t);
}
// Rows whose shared statistics a warp takes at a time: more than one where there are more rows than warps, so
// that each lane has 64 to 128 values of short ones too.
constexpr int SharedRows(int64_t k, int64_t rows, int64_t warps) {
  const int most = k > 2048 ? 1 : k > 1024 ? 2 : 4;
  int at_a_time = 1;
  while (at_a_time < most && warps * at_a_time < rows) at_a_time *= 2;
  return at_a_time;
}
constexpr int kSharingWarps = 3;  // of a block
// Whether a Hopper tile takes the statistics of its rows itself: of halves a warpgroup beside those that
// multiply, where weights are widened three warps. Those of 64 rows take longer than a tile's loads, but of
// halves less than a kernel before where a block has only a part of K.
constexpr bool TakesMoments(Packing packing, int rows, bool parts) {
  return packing == Packing::kHalf ? rows <= (parts ? 64 : 32) : packing == Packing::kInt8 && rows <= 32;
}

// Groups of 64 columns of a Hopper tile. In a narrow one the last is not whole, but a multiple of 16; for few
// rows, whose wasted products are hidden behind memory.
constexpr int TileGroups(int columns) { return static_cast<int>(CeilDiv(columns, kPieceColumns)); }
constexpr bool IsNarrow(int columns) { return columns % kPieceColumns != 0; }
constexpr bool MayBeNarrow(Packing packing, int rows, bool parts) {
  return packing == Packing::kHalf && rows <= (parts ? 64 : 32);
}

// Groups and rows of the Hopper tiles of blocks that have one each: those of three groups and few rows are
// for blocks that share out K, and widened weights leave the two largest no registers.
constexpr bool HasHopperTile(Packing packing, int groups, int rows) {
  return groups < 3 || (rows >= 128 && (packing != Packing::kInt8 || rows < 192));
}

// The tiles that clusters of blocks have.
constexpr bool HasClusterTile(Packing packing, int groups, int rows) {
  return packing == Packing::kHalf && HasHopperTile(packing, groups, rows) && rows >= 64 && rows <= 128;
}
// Whether blocks of a cluster have a warpgroup for statistics, for which three groups leave no registers.
constexpr bool HasClusterStatistics(int groups) { return groups < 3; }
// Whether those that have the same rows each take the statistics of some of them. More than 32 each would
// take longer than most products.
constexpr bool ClusterTakesStatistics(int groups, int rows, int cluster_columns) {
  return HasClusterStatistics(groups) && rows / cluster_columns <= 32;
}

// The parts of K in which a cluster of blocks may compute a tile, at most; 1: it may not. Each block but the
// first hands its sums to that one, which has room for all of them.
constexpr int MostParts(Packing packing, int groups, int rows) {
  if (packing != Packing::kHalf && packing != Packing::kInt8) return 1;
  if (rows <= 64) return groups == 1 ? 8 : groups == 2 || rows <= 32 ? 4 : 3;
  return packing == Packing::kHalf && groups == 2 && rows == 128 ? 2 : 1;
}

// Whether a kernel has Hopper tiles of so many groups and rows, whose K so many blocks share out.
constexpr bool HasHopperTile(Packing packing, int groups, int rows, int k_parts) {
  return k_parts > 1 ? k_parts <= MostParts(packing, groups, rows) : HasHopperTile(packing, groups, rows);
}

// Tiles of kStream of which two run on a multiprocessor: while one widens int8 weights, memory serves the
// other.
constexpr bool FitsTwice(Packing packing, int columns, int rows) {
  return packing == Packing::kInt8 && (columns == 16 || (columns <= 48 && rows == 8));
}

constexpr int64_t RowPitch(const Problem& p, Rows rows) {  // elements
  return rows == Rows::kQuantised ? RoundUp(p.k, 16) : rows == Rows::kInput ? p.k : RoundUp(p.k, 8);
}
constexpr int64_t RowElementBytes(const Problem& p, Rows rows) {
  return rows == Rows::kQuantised ? 1 : static_cast<int64_t>(SizeOf(p.t));
}
constexpr size_t StatisticsBytes(const Problem& p) {
  return static_cast<size_t>(p.m + kMostTileRows - 1) * sizeof(RowStatistics);
}

}  // namespace qkvgemm::cuda
