// A gradient whose rows and columns are scaled, as adafactor and apollo update by, without writing it down.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

// sums[r] = sum over c of (row[r] col[c] g[r, c])^2, sixteen running sums in float over blocks of 1024 columns, the
// blocks in double; a null `row` or `col` stands for ones. sums [rows].
void ScaledRowSquares(ConstMatrix g, const float* row, const float* col, double* sums);
// sums[c] += sum over r of (scale g[r, c])^2, in double, rows in increasing order. sums [cols].
void AddColumnSquares(ConstMatrix g, float scale, double* sums);
// param[r, c] = decay * param[r, c] - row[r] col[c] g[r, c]; a null `row` or `col` stands for ones.
void ApplyScaledGradient(ConstMatrix g, const float* row, const float* col, float decay, Matrix param);

}  // namespace thimble
