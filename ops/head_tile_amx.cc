#include "ops/head_tile_amx.h"

#include <algorithm>
#include <cstdint>

#include "ops/amx_panel.h"
#include "ops/matmul_product.h"
#include "ops/parallel.h"
#include "ops/tile_product_amx.h"

namespace thimble {
namespace {

void PackPanel(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, uint16_t* panel) {
  AmxPacking packing;
  packing.operand = &operand;
  packing.lanes = lanes;
  packing.lane = lane;
  packing.k = k;
  packing.depth = depth;
  packing.panel = panel;
  PackAmxRight(&packing, packing.pieces());
}

int64_t Panels(int64_t lanes) { return (lanes + kAmxPanel - 1) / kAmxPanel; }

}  // namespace

void PackAmxHeadTile(const HeadRows::Window& head, const AmxHeadTile& tile) {
  const int64_t turned = Panels(tile.rows), straight = tile.straight == nullptr ? 0 : Panels(tile.dim);
  const int64_t first = tile.begin - head.first;
  ParallelFor(turned + straight, [&](int64_t i, int) {
    if (i < turned) {
      const MatMulOperand rows = {nullptr, 0, false, &head.rows};
      PackPanel(rows, first + tile.rows, first + i * kAmxPanel, 0, tile.dim,
                tile.turned + i * kAmxPanel * AmxPaddedDepth(tile.dim));
    } else {
      const MatMulOperand columns = {nullptr, 0, true, &head.rows};
      const int64_t lane = (i - turned) * kAmxPanel;
      PackPanel(columns, tile.dim, lane, first, tile.rows, tile.straight + lane * AmxPaddedDepth(tile.rows));
    }
  });
}

void AmxLogits(const float* const* h, int64_t rows, const AmxHeadTile& tile, uint16_t* left, float* const* z) {
  constexpr int64_t kMaxRows = 128;
  const float* slice[kMaxRows];
  for (int64_t k = 0; k < tile.dim; k += kAmxHeadSlice) {
    const int64_t depth = std::min(kAmxHeadSlice, tile.dim - k);
    for (int64_t r = 0; r < rows; ++r) slice[r] = h[r] + k;
    PackAmxLeftRows(slice, rows, depth, AmxLanes::kRows, left);
    MultiplyAmxTiles(left, rows, {tile.turned + k * kAmxPanel, AmxPaddedDepth(tile.dim)}, tile.rows, depth, z, k > 0);
  }
}

void AddAmxHeadProduct(const float* const* p, int64_t rows, const AmxHeadTile& tile, uint16_t* left, float* const* dh) {
  PackAmxLeftRows(p, rows, tile.rows, AmxLanes::kRows, left);
  MultiplyAmxTiles(left, rows, {tile.straight, AmxPaddedDepth(tile.rows)}, tile.dim, tile.rows, dh, true);
}

}  // namespace thimble
