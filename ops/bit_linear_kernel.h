// The integer product inside BitLinear, one function a CPU level; all give the same sums.
#pragma once

#include <cstdint>

namespace thimble {

// A panel: kTernaryPanel rows of codes (columns of the product) as two halves of 16, each depth / 4 groups of 16 rows
// with 4 consecutive codes side by side. Codes are 0, 1 and 2 for -1, 0 and 1. Depth is a multiple of 64.
inline constexpr int64_t kTernaryPanel = 32;
// Rows of int8 values that are multiplied at a time, at most.
inline constexpr int64_t kTernaryRows = 32;

// Unpacks rows of Format::kTernary, `stride` bytes apart; rows beyond `count` are zeros (codes 1 or any other: their
// sums are not used).
void PackTernaryPanel(const uint8_t* codes, int64_t stride, int64_t count, int64_t depth, uint8_t* panel);

// sums[r * kTernaryPanel + c] = sum over k < depth of q[r * stride + k] * code(c, k), for r < rows <= kTernaryRows.
using TernaryMultiply = void (*)(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* panel, int64_t depth,
                                 int32_t* sums);

// Of at most so many rows by one row of Format::kTernary as it is stored: sums[r] = sum of q[r * stride + k] * code(k).
inline constexpr int64_t kTernaryFewRows = 4;
using TernaryRowMultiply = void (*)(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* codes, int64_t depth,
                                    int32_t* sums);

// Those of the active CPU level.
TernaryRowMultiply ActiveTernaryRowMultiply();
TernaryMultiply ActiveTernaryMultiply();
// Whether it needs an AmxScope (ops/amx_panel.h).
bool TernaryUsesTiles();

}  // namespace thimble
