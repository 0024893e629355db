// How element-wise kernels cut a matrix: into parts of rows for threads, and into spans of contiguous elements.
#pragma once

#include <algorithm>
#include <cstdint>

#include "ops/parallel.h"

namespace thimble {

// Elements below which a thread costs more than it saves (64 KiB of f32).
constexpr int64_t kElementGrain = 1 << 14;

// Calls body(begin, end) on ranges of rows that hold at least kElementGrain elements each.
template <typename Body>
void ParallelRows(int64_t rows, int64_t cols, const Body& body) {
  if (cols <= 0) return;
  ParallelRanges(rows, (kElementGrain + cols - 1) / cols, body);
}

// Calls body(row, col, n) on contiguous spans that cover [rows, cols] once. With `contiguous` (every view's stride is
// its cols) a span runs across rows: row is then 0 and col counts elements from the first.
template <typename Body>
void ParallelSpans(int64_t rows, int64_t cols, bool contiguous, const Body& body) {
  if (contiguous) {
    ParallelRanges(rows * cols, kElementGrain, [&](int64_t begin, int64_t end) { body(0, begin, end - begin); });
    return;
  }
  ParallelRows(rows, cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row, 0, cols);
  });
}

}  // namespace thimble
