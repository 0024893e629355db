#include "ops/tile_product_amx.h"

#include <algorithm>
#include <cstdint>

#include "ops/amx_panel.h"
#include "ops/check.h"

#if defined(__x86_64__)
// gcc's own header leaves the ignored lanes of its unmasked intrinsics uninitialised on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

#include "ops/amx_rows-inl.h"
#endif

namespace thimble {

int64_t AmxPanelValues(int64_t lanes, int64_t depth) {
  return (lanes + kAmxPanel - 1) / kAmxPanel * kAmxPanel * AmxPaddedDepth(depth);
}

#if defined(__x86_64__)
namespace {

struct PointedRows {
  const float* const* rows;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    return F32Rows{rows[r], 0, 0}.Row(0, c, count);
  }
};

// The part of a matrix of `count` rows and `columns` columns from lane `lane` on.
Part LanesFrom(int64_t lane, int64_t count, int64_t columns, AmxLanes lanes) {
  if (lanes == AmxLanes::kColumns) return {0, count, lane, columns - lane};
  return {lane, count - lane, 0, columns};
}

THIMBLE_AMX_TARGET void PackPanel(RightPieces<PointedRows> pieces) {
  while (pieces.next < pieces.end) pieces.Pack();
}

// Rows and columns of a finished pair of panels.
THIMBLE_AMX_TARGET void StoreTiles(const float* sums, int64_t rows, int64_t columns, float* const* c, int64_t column,
                                   bool add) {
  for (int64_t r = 0; r < rows; ++r) {
    const float* from = sums + r / kLanes * 2 * kTileFloats + r % kLanes * kLanes;
    for (int64_t i = 0; i < columns; i += kLanes, from += kTileFloats) {
      const __mmask16 mask = static_cast<__mmask16>(columns - i < kLanes ? (1u << (columns - i)) - 1 : 0xFFFFu);
      float* to = c[r] + column + i;
      __m512 value = _mm512_load_ps(from);
      if (add) value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), value);
      _mm512_mask_storeu_ps(to, mask, value);
    }
  }
}

// Whether the rows of a panel are those of a matrix in memory.
bool EquallyFarApart(float* const* c) {
  bool equal = true;
  for (int64_t r = 2; r < kAmxPanel; ++r) equal &= c[r] - c[r - 1] == c[1] - c[0];
  return equal && c[1] - c[0] > 0;
}

}  // namespace

void PackAmxLeftRows(const float* const* rows, int64_t count, int64_t columns, AmxLanes lanes, uint16_t* panels) {
  const bool turned = lanes == AmxLanes::kColumns;
  const int64_t all = turned ? columns : count, depth = AmxPaddedDepth(turned ? count : columns);
  for (int64_t lane = 0; lane < all; lane += kAmxPanel) {
    PackLeftSteps(PointedRows{rows}, turned, LanesFrom(lane, count, columns, lanes), depth / kAmxStep,
                  panels + lane * depth);
  }
}

void PackAmxRightRows(const float* const* rows, int64_t count, int64_t columns, AmxLanes lanes, uint16_t* panels) {
  const bool turned = lanes == AmxLanes::kColumns;
  const int64_t all = turned ? columns : count, depth = AmxPaddedDepth(turned ? count : columns);
  alignas(64) uint16_t tile[kTile];
  for (int64_t lane = 0; lane < all; lane += kAmxPanel) {
    PackPanel({PointedRows{rows}, LanesFrom(lane, count, columns, lanes), turned, tile, panels + lane * depth, 0,
               depth / kAmxStep * AmxPacking::kPiecesAStep});
  }
}

void MultiplyAmxTiles(const uint16_t* left, int64_t left_lanes, const AmxRightPanels& right, int64_t right_lanes,
                      int64_t depth, float* const* c, bool add) {
  const int64_t padded = AmxPaddedDepth(depth);
  alignas(64) float sums[kAmxSums];
  for (int64_t n = 0; n < right_lanes; n += kAmxPanel) {
    const int64_t columns = std::min(kAmxPanel, right_lanes - n);
    for (int64_t m = 0; m < left_lanes; m += kAmxPanel) {
      const int64_t rows = std::min(kAmxPanel, left_lanes - m);
      AmxProduct product = {
          left + m * padded, right.first + n * right.depth, padded / kAmxStep, rows, columns, false, sums};
      // Whole panels go straight to where they belong.
      if (!add && rows == kAmxPanel && columns == kAmxPanel && EquallyFarApart(c + m)) {
        product.sums = c[m] + n;
        product.stride = c[m + 1] - c[m];
      }
      MultiplyAmxPanels(product, {}, nullptr, 0);
      if (product.stride == 0) StoreTiles(sums, rows, columns, c + m, n, add);
    }
  }
}
#else   // No AMX: nothing calls these.
void PackAmxLeftRows(const float* const*, int64_t, int64_t, AmxLanes, uint16_t*) { CHECK(false); }
void PackAmxRightRows(const float* const*, int64_t, int64_t, AmxLanes, uint16_t*) { CHECK(false); }
void MultiplyAmxTiles(const uint16_t*, int64_t, const AmxRightPanels&, int64_t, int64_t, float* const*, bool) {
  CHECK(false);
}
#endif  // defined(__x86_64__)

}  // namespace thimble
