// Products of small tiles on AMX, for kernels that keep their intermediates in cache: operands are rows in memory,
// rounded to bf16 while they are packed into panels (ops/amx_panel.h). All of it inside an AmxScope, where HasAmx().
//
// Every element of a product is one chain of tdpbf16ps over the inner index from zero: its bits depend on neither the
// place of its row and column in the tile nor their number.
#pragma once

#include <cstdint>

namespace thimble {

// What a packed operand's lanes are, the rows of the matrix in memory or its columns; the others are inner indices.
enum class AmxLanes : uint8_t { kRows, kColumns };

// bf16 values of the panels of an operand.
int64_t AmxPanelValues(int64_t lanes, int64_t depth);

// rows[r][c] for r < count, c < columns as the left or the right operand of a product.
void PackAmxLeftRows(const float* const* rows, int64_t count, int64_t columns, AmxLanes lanes, uint16_t* panels);
void PackAmxRightRows(const float* const* rows, int64_t count, int64_t columns, AmxLanes lanes, uint16_t* panels);

// Panels of a right operand from some inner index on, a multiple of kAmxStep: `depth` of all they hold, padded.
struct AmxRightPanels {
  const uint16_t* first;
  int64_t depth;
};

// c[m][n] = or (add) += sum over k < depth of left lane m and right lane n, for m < left_lanes, n < right_lanes.
void MultiplyAmxTiles(const uint16_t* left, int64_t left_lanes, const AmxRightPanels& right, int64_t right_lanes,
                      int64_t depth, float* const* c, bool add);

}  // namespace thimble
