// The scratch of attention's kernels. For ops/attention.cc.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/attention.h"
#include "ops/matmul_bf16.h"
#include "ops/parallel.h"
#include "ops/scratch_carver.h"

namespace thimble {

inline constexpr int64_t kKeyTile = 64;
inline constexpr int64_t kMaxRows = 128;     // of a tile: query rows times heads
inline constexpr int64_t kWidestPanel = 32;  // of any CPU level

// Of one thread.
struct ThreadScratch {
  float *keys_turned, *values_turned;  // panels [head_dim][kKeyTile]
  float *keys, *values;                // panels [kKeyTile][head_dim]
  float *p, *ds;                       // [kMaxRows][kKeyTile]
  float* rows;                         // one panel of kMaxRows
  // With products on tiles: operands of up to kMaxRows rows. Panels above hold bf16 then and leave half their room.
  uint16_t *left, *right;
};

struct ScratchLayout {
  int32_t *begin, *end;  // list of tiles, at most one a token
  float* delta;
  float* threads;
  int64_t floats_per_thread;

  ScratchLayout(ScratchCarver& carver, const AttentionShape& shape, int64_t tokens) {
    begin = carver.Take<int32_t>(tokens);
    end = carver.Take<int32_t>(tokens);
    delta = carver.Take<float>(tokens * shape.num_heads);
    floats_per_thread = FloatsOfPanels(shape) + (OnTiles(shape.compute) ? LeftFloats(shape) + RightFloats(shape) : 0);
    threads = carver.Take<float>(NumThreads() * floats_per_thread);
  }
  ThreadScratch OfThread(const AttentionShape& shape, int thread) const {
    const int64_t tile = kKeyTile * Width(shape);
    float* at = threads + thread * floats_per_thread;
    float *p = at + 4 * tile, *left = at + FloatsOfPanels(shape);
    return {at,
            at + tile,
            at + 2 * tile,
            at + 3 * tile,
            p,
            p + kMaxRows * kKeyTile,
            p + 2 * kMaxRows * kKeyTile,
            reinterpret_cast<uint16_t*>(left),
            reinterpret_cast<uint16_t*>(left + LeftFloats(shape))};
  }
  static int64_t FloatsOfPanels(const AttentionShape& shape) {
    return 4 * kKeyTile * Width(shape) + kMaxRows * (2 * kKeyTile + kWidestPanel);
  }
  // Two bf16 values a float: kMaxRows rows of heads or of keys; kMaxRows rows of heads.
  static int64_t LeftFloats(const AttentionShape& shape) { return kMaxRows * std::max(Width(shape), kKeyTile) / 2; }
  static int64_t RightFloats(const AttentionShape& shape) { return kMaxRows * Width(shape) / 2; }
  static int64_t Width(const AttentionShape& shape) {
    return (shape.head_dim + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
  }
};

}  // namespace thimble
