// The inner parts of matrix products, one table a CPU level: packing operands into panels and multiplying two panels.
//
// A panel holds `width` rows (of the left operand) or columns (of the right one) of the product, inner index first:
// panel[k * width + lane]. Lanes beyond `count` repeat
// another lane: whatever stands there is not stored.
#pragma once

#include <cstdint>

#include "ops/format.h"

namespace thimble {

// y[r, c] = scale * sum (+ y[r, c] when add) for the columns c < count of a tile.
struct MatMulTile {
  float* y;
  int64_t stride;
  int64_t count;
  float scale;
  bool add;
};

struct MatMulKernels {
  static constexpr int kMaxRows = 8;
  static constexpr int kMaxWideRows = 2;

  int rows;  // width of the left operand's panels
  int cols;  // width of the right operand's panels; a multiple of 4

  // Multiplies the first r rows of a left panel with a right panel of `depth` inner indices (depth pairs for bf16 dot
  // products): multiply[r - 1], 1 <= r <= rows. Each element is one chain of FMAs in increasing inner index.
  using Multiply = void (*)(int64_t depth, const float* left, const float* right, const MatMulTile& tile);
  Multiply multiply[kMaxRows];
  // The same for two right panels, one `right_stride` floats behind the other, and at most kMaxWideRows rows: enough
  // independent chains for one or two rows. Tiles have up to 2 * cols columns.
  using MultiplyWide = void (*)(int64_t depth, const float* left, const float* right, int64_t right_stride,
                                const MatMulTile& tile);
  MultiplyWide multiply_wide[kMaxWideRows];

  // Packs `count` lanes into ceil(count / width) panels, `panel_stride` floats apart, rounded to bf16 on request:
  // panel[k * width + r] = source[r * stride + k] for k < depth. Nothing is written behind the panels.
  using Pack = void (*)(const float* source, int64_t stride, int64_t count, int64_t depth, bool round, float* panel,
                        int64_t panel_stride);
  Pack pack_left_rows;
  Pack pack_right_rows;
  // The same from inner-first memory: panel[k * width + c] = source[k * stride + c].
  Pack pack_left_cols;
  Pack pack_right_cols;

  // Rows row .. row + cols - 1 of a 4-bit weight, columns col .. col + depth - 1, decoded straight into a right panel
  // (pack_right_rows of what DecodeRow gives). Only where CanPack4Bit says so; null where the level has none.
  void (*pack_4bit)(const WeightView& w, int64_t row, int64_t col, int64_t depth, bool round, float* panel);

  // Turns a packed panel of bf16 values into pairs, in place: panel[k / 2 * width + lane] holds the bf16 of inner
  // indices k (low half) and k + 1. Null when multiply works on floats.
  void (*pair)(float* panel, int64_t depth, int width);
};

// Whether rows start on block boundaries and the columns on 32 and on a block's part of it.
bool CanPack4Bit(const WeightView& w, int64_t col, int64_t depth);

// The table of the active CPU level.
const MatMulKernels& F32Kernels();

}  // namespace thimble
