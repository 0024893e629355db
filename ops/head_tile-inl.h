// A tile of a head's rows, decoded and packed for products by row and by column. Included inside a Highway
// foreach_target source.
#if defined(THIMBLE_OPS_HEAD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_HEAD_TILE_INL_H_
#undef THIMBLE_OPS_HEAD_TILE_INL_H_
#else
#define THIMBLE_OPS_HEAD_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <limits>

#include "hwy/highway.h"
#include "ops/format.h"
#include "ops/head_rows.h"
#include "ops/parallel.h"
#include "ops/tile_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Head rows [begin, begin + rows): `turned` for h C^T, [rows / kPanel][dim][kPanel], and `straight` for P C, [dim /
// kPanel][rows][kPanel]; null where it is not wanted. Padding is 0.
struct HeadTile {
  int64_t begin, rows;
  float *turned, *straight;
};

// Packs kPanel rows of the tile, from `first` on.
HWY_NOINLINE inline void PackHeadPanel(const HeadRows::Window& window, const HeadTile& tile, int64_t first,
                                       bool round_bf16) {
  const WeightView& head = window.rows;
  constexpr int64_t kChunk = 512;
  alignas(64) float values[4][kChunk];
  const F32 d;
  for (int64_t j = first; j < first + kPanel; j += kGroup) {
    for (int64_t column = 0; column < head.cols; column += kChunk) {
      const int64_t columns = std::min(kChunk, head.cols - column), padded = RoundUp(columns, kPanel);
      const float* group[4] = {};
      for (int64_t i = 0; i < kGroup && j + i < tile.rows; ++i) {
        DecodeRow(head, tile.begin - window.first + j + i, column, columns, values[i]);
        if (round_bf16) RoundToBF16(values[i], columns, values[i]);
        std::fill(values[i] + columns, values[i] + padded, 0.0f);
        group[i] = values[i];
        if (tile.straight == nullptr) continue;
        for (int64_t c = 0; c < padded; c += kPanel) {
          float* out = tile.straight + (column + c) * tile.rows + (j + i) * kPanel;
          hn::Store(hn::Load(d, values[i] + c), d, out);
          hn::Store(hn::Load(d, values[i] + c + kLanes), d, out + kLanes);
        }
      }
      PackTransposedGroup(group, columns,
                          tile.turned + j / kPanel * (head.cols * kPanel) + column * kPanel + j % kPanel);
    }
  }
}

inline void PackHeadTile(const HeadRows::Window& head, const HeadTile& tile, bool round_bf16) {
  ParallelFor((tile.rows + kPanel - 1) / kPanel,
              [&](int64_t i, int) { PackHeadPanel(head, tile, i * kPanel, round_bf16); });
}

// head_sum += rows of the tile, from its packed form.
inline void AddHeadSum(const HeadTile& tile, int64_t dim, float* head_sum) {
  ParallelFor((dim + kPanel - 1) / kPanel, [&](int64_t i, int) {
    float total[kPanel] = {};
    for (int64_t v = 0; v < tile.rows; ++v) {
      for (int64_t c = 0; c < kPanel; ++c) total[c] += tile.straight[(i * tile.rows + v) * kPanel + c];
    }
    for (int64_t c = 0; c < kPanel; ++c) head_sum[i * kPanel + c] += total[c];
  });
}

// z[m][j] = h[m] . C[tile.begin + j] for j < RoundUp(tile.rows, kPanel). `rounded` [rows][kDepthBlock] holds h rounded
// to bf16 a block at a time; null: h as it is.
HWY_NOINLINE inline void LogitTile(const float* const* h, int64_t rows, int64_t dim, const HeadTile& tile,
                                   float* rounded, float* const* z) {
  constexpr int64_t kMaxRows = 96;
  const int64_t columns = RoundUp(tile.rows, kPanel);
  for (int64_t k = 0; k < dim; k += kDepthBlock) {
    const int64_t block = std::min(kDepthBlock, dim - k);
    const float* a[kMaxRows];
    for (int64_t r = 0; r < rows; ++r) {
      a[r] = h[r] + k;
      if (rounded == nullptr) continue;
      RoundToBF16(a[r], block, rounded + r * kDepthBlock);
      a[r] = rounded + r * kDepthBlock;
    }
    for (int64_t column = 0; column < columns; column += kPanel) {
      MultiplyPanel(RowOperand{a}, rows, 0, block, tile.turned + column * dim + k * kPanel, z, column, kPanel,
                    k == 0 ? Write::kStore : Write::kAdd);
    }
  }
}

// Soft cap in place, and the largest logit of a tile.
HWY_INLINE float CapLogits(float* z, int64_t columns, float soft_cap) {
  const F32 d;
  auto max = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int64_t c = 0; c < columns; c += kLanes) {
    auto x = hn::Load(d, z + c);
    if (soft_cap > 0) x = hn::Mul(hn::Set(d, soft_cap), Tanh(d, hn::Mul(x, hn::Set(d, 1 / soft_cap))));
    hn::Store(x, d, z + c);
    const auto mask = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, columns - c)));
    max = hn::IfThenElse(mask, hn::Max(max, x), max);
  }
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_HEAD_TILE_INL_H_
