// BitLinear of BitNet b1.58: weights of -1, 0 and 1 with one scale a matrix, inputs of int8 with one scale a token, and
// their exact integer product. Straight-through gradients: those of the plain product of the dequantised operands.
// Sources: Ma et al. 2024, arXiv:2402.17764, and its "Training Tips, Code and FAQ"; Ma et al. 2025, arXiv:2504.12285.
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// Floats of a row of int8 values and of a row of packed ternary codes: both are padded to 64 values.
int64_t Int8RowWords(int64_t cols);
int64_t TernaryRowWords(int64_t cols);

// scale[r] = 127 / max(|x[r]|, 1e-5) and q[r, c] = round(x[r, c] * scale[r]), half to even, in [-128, 127], are
// written; padding is 0. x [rows, cols], q [rows, Int8RowWords(cols)] of bytes, scale [rows]. A NaN in x gives some
// value.
void QuantizeRowsInt8(ConstMatrix x, Matrix q, Vector scale);
// x[r, c] = q[r, c] / scale[r] is written.
void DequantizeRowsInt8(ConstMatrix q, ConstVector scale, Matrix x);

// gamma = max(mean |w|, 1e-5) and the codes round(w / gamma) in {-1, 0, 1}, half to even, are written: w in any format,
// codes [w.rows, TernaryRowWords(w.cols)] in the layout of Format::kTernary. The mean is summed in an order of its own,
// for any number of threads.
void TernarizeWeight(const WeightView& w, Matrix codes, float* gamma, Scratch scratch);
int64_t TernarizeScratchBytes(int64_t rows);
// How such codes are read: as a weight of codes times gamma.
WeightView TernaryView(ConstMatrix codes, int64_t cols, const float* gamma);

// Of one row: 16 bytes for each 64 values, which are -1, 0 and 1; TernaryRowWords(cols) * 4 bytes are written.
void PackTernaryRow(const int8_t* values, int64_t cols, uint8_t* codes);

// y[r, o] = (sum over c of q[r, c] T[o, c]) * (gamma / scale[r]) is written: the sum is an exact int32, so the bits
// depend on nothing but the operands. w is TernaryView's; q [rows, Int8RowWords(w.cols)].
void BitLinearForward(ConstMatrix q, ConstVector scale, const WeightView& w, Matrix y, Scratch scratch);
// For x[rows, cols], with NumThreads() threads.
int64_t BitLinearScratchBytes(int64_t rows, int64_t cols);

}  // namespace thimble
