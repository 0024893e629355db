// A tile of a head's rows for products on AMX: the form that ops/head_tile-inl.h has in floats, in panels of bf16.
#pragma once

#include <cstdint>

#include "ops/head_rows.h"

namespace thimble {

// Head rows [begin, begin + rows) of width `dim` as right operands: `turned` for h C^T (lanes are head rows),
// `straight` for P C (lanes are columns); null where it is not wanted. AmxPanelValues() bf16 values each.
struct AmxHeadTile {
  int64_t begin, rows, dim;
  uint16_t *turned, *straight;
};

// Inner indices of h that are packed at a time.
inline constexpr int64_t kAmxHeadSlice = 512;

// In parallel over panels.
void PackAmxHeadTile(const HeadRows::Window& head, const AmxHeadTile& tile);

// z[m][j] = h[m] . C[tile.begin + j] for m < rows, j < tile.rows, one chain in increasing inner index. `left` holds
// AmxPanelValues(rows, kAmxHeadSlice) bf16 values. Inside an AmxScope, as the next.
void AmxLogits(const float* const* h, int64_t rows, const AmxHeadTile& tile, uint16_t* left, float* const* z);

// dh[m] += P[m] C of the tile. `left`: AmxPanelValues(rows, tile.rows).
void AddAmxHeadProduct(const float* const* p, int64_t rows, const AmxHeadTile& tile, uint16_t* left, float* const* dh);

}  // namespace thimble
