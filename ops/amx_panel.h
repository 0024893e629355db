// Operands of a matrix product as AMX tiles of bf16, and the product of two of their panels.
//
// A tile is 1 KiB: 16 rows of 32 bf16. A panel is kAmxPanel lanes (rows or columns of the product) by a depth that is
// padded to kAmxStep, two tiles a step. A left tile holds 16 lanes with their 32 inner indices; a right tile holds 16
// pairs of inner indices, each with 16 lanes side by side. Padding is 0.
#pragma once

#include <cstdint>

#include "ops/matmul_product.h"

namespace thimble {

inline constexpr int64_t kAmxPanel = 32;
inline constexpr int64_t kAmxStep = 32;
// Floats of the sums of two panels: four tiles of 16 rows and 16 columns, those of the first 16 rows first.
inline constexpr int64_t kAmxSums = kAmxPanel * kAmxPanel;

inline int64_t AmxPaddedDepth(int64_t depth) { return (depth + kAmxStep - 1) / kAmxStep * kAmxStep; }

// Packs the panel of lanes [lane, lane + kAmxPanel) and inner indices [k, k + depth) of an operand of `lanes` lanes.
// Needs HasAmx(), as all that follows.
void PackAmxLeft(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, uint16_t* panel);

// The same for a right panel, piece by piece.
struct AmxPacking {
  static constexpr int64_t kPiecesAStep = 16;

  const MatMulOperand* operand = nullptr;
  int64_t lanes = 0, lane = 0, k = 0, depth = 0;
  uint16_t* panel = nullptr;
  int64_t next = 0;                          // piece
  alignas(64) uint16_t rows[16 * kAmxStep];  // of a tile that is not turned yet

  int64_t pieces() const { return AmxPaddedDepth(depth) / kAmxStep * kPiecesAStep; }
};

// Packs up to `count` more pieces.
void PackAmxRight(AmxPacking* packing, int64_t count);

// Configures the tile registers of this thread while it lives. Tiles are used inside such a scope only.
class AmxScope {
 public:
  AmxScope();
  ~AmxScope();
  AmxScope(const AmxScope&) = delete;
};

// A finished product: y[r, c] = scale * sums (+ y[r, c] when add) for r < rows, c < cols.
struct AmxResult {
  const float* sums = nullptr;
  float* y = nullptr;
  int64_t stride = 0, rows = 0, cols = 0;
  float scale = 1;
  bool add = false;
  bool past_caches = false;  // writes whole cache lines to memory without reading them first
};

// Nothing where there are no sums. What is written past the caches is in order after the AmxScope's end.
void StoreAmxSums(const AmxResult& result);

// The product of two panels over `steps` steps, of the first `rows` and `cols` lanes at least: sums = or += it. One
// chain of tdpbf16ps an element, in increasing inner index. With a stride, sums are kAmxPanel rows and columns of a
// matrix in memory, `stride` floats a row.
struct AmxProduct {
  const uint16_t *left, *right;
  int64_t steps, rows, cols;
  bool add;
  float* sums;
  int64_t stride = 0;
};

// Multiplies, and in the gaps between tile instructions stores `done` and packs `pieces` pieces a step: no processor
// finds so much other work on its own while it waits for tiles.
void MultiplyAmxPanels(const AmxProduct& product, const AmxResult& done, AmxPacking* packing, int64_t pieces);

}  // namespace thimble
