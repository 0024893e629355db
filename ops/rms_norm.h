// Root mean square normalisation: y = (x * rstd) * w, rstd = 1 / sqrt(mean(x^2) + eps), row by row. Per head (queries
// and keys) the same with rows = tokens * heads and dim = head_dim.
// Source: Zhang & Sennrich 2019, arXiv:1910.07467.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

// x, y [rows, dim]; w [dim]; rstd [rows] is saved for backward. y may be x.
void RmsNormForward(ConstMatrix x, ConstVector w, float eps, Matrix y, Vector rstd);

// dx [rows, dim] is written and may be dy or x; dw [dim] is accumulated, or empty (data null) when w is frozen: scratch
// is not used then and may be empty too.
void RmsNormBackward(ConstMatrix x, ConstVector w, ConstVector rstd, ConstMatrix dy, Matrix dx, Vector dw, Scratch);
int64_t RmsNormScratchBytes(int64_t rows, int64_t dim);

}  // namespace thimble
