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
// Lanes by inner indices that one call packs; the work of a call is about that of a few tile products.
inline constexpr int64_t kAmxUnitElements = 1024;
// Floats of the sums of two panels: four tiles of 16 rows and 16 columns, those of the first 16 rows first.
inline constexpr int64_t kAmxSums = kAmxPanel * kAmxPanel;

inline int64_t AmxPaddedDepth(int64_t depth) { return (depth + kAmxStep - 1) / kAmxStep * kAmxStep; }
inline int64_t AmxUnits(int64_t depth) { return AmxPaddedDepth(depth) * kAmxPanel / kAmxUnitElements; }

// The panel of lanes [lane, lane + kAmxPanel) and inner indices [k, k + depth) of an operand of `lanes` lanes. Both
// functions need HasAmx().
void PackAmxLeft(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, uint16_t* panel);

// Units [begin, end) of AmxUnits(depth) of a right panel; all of them make the panel.
void PackAmxRight(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, int64_t begin,
                  int64_t end, uint16_t* panel);

// Configures the tile registers of this thread while it lives. Tiles are used inside such a scope only.
class AmxScope {
 public:
  AmxScope();
  ~AmxScope();
  AmxScope(const AmxScope&) = delete;
};

// sums = or += the product of two panels over `steps` steps, of the first `rows` and `cols` lanes at least. One chain
// of tdpbf16ps an element, in increasing inner index.
void MultiplyAmxPanels(const uint16_t* left, const uint16_t* right, int64_t steps, int64_t rows, int64_t cols, bool add,
                       float* sums);

// y[r, c] = scale * sums (+ y[r, c] when add) for r < rows, c < cols.
void StoreAmxSums(const float* sums, float* y, int64_t stride, int64_t rows, int64_t cols, float scale, bool add);

}  // namespace thimble
