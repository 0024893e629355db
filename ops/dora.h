// Weight-decomposed low-rank adapter: y = k (W x + scale b a x), k_o = m_o / n_o, n_o = |(W + scale b a)_o|, without
// bias. n is a constant in backward. With active dropout PEFT's value is another:
// y = W x + (k - 1) W x_d + k scale b a x_d, x_d = dropout(x).
// Source: Liu et al. 2024, arXiv:2402.09353; forms as in PEFT.
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/lora.h"
#include "ops/matmul.h"
#include "ops/view.h"

namespace thimble {

// norm [out] = the Euclidean norm of every row of W + scale b a; w [out, in], a [rank, in], b [out, rank], a and b
// without gaps between rows. A tile of rows at a time, in float, squares added in double.
void DoraNorm(const WeightView& w, ConstMatrix a, ConstMatrix b, float scale, Vector norm, Scratch scratch);
int64_t DoraNormScratchBytes(int64_t in);

// Without dropout. z [T, out] holds W x + scale b a x (no bias); y = z * m / norm is written and may be z; keep z if m
// is trained.
void DoraForward(ConstVector m, ConstVector norm, ConstMatrix z, Matrix y);
inline void DoraForward(ConstVector m, ConstVector norm, Matrix y) { DoraForward(m, norm, y, y); }
// dz = dy * m / norm is written and may be dy: the gradient that W and the adapter take. dm [out] += column sums of
// dy * z / norm; dm may be empty (data null).
void DoraBackward(ConstVector m, ConstVector norm, ConstMatrix z, ConstMatrix dy, Matrix dz, Vector dm);

// With dropout. y [T, out] holds W x on entry (no bias) and gets the rest; xa [T, rank] = x_d a^T is written and saved.
void DoraDropoutForward(ConstMatrix x, const WeightView& w, ConstMatrix a, ConstMatrix b, ConstVector m,
                        ConstVector norm, float scale, const LoraDropout& dropout, Compute compute, Matrix xa, Matrix y,
                        Scratch scratch);
// dx [T, in] holds W^T dy on entry and gets the rest, or is empty when not needed; da, db, dm are accumulated. W x_d is
// computed again, tile by tile.
void DoraDropoutBackward(ConstMatrix x, const WeightView& w, ConstMatrix a, ConstMatrix b, ConstVector m,
                         ConstVector norm, float scale, const LoraDropout& dropout, Compute compute, ConstMatrix xa,
                         ConstMatrix dy, Matrix dx, Matrix da, Matrix db, Vector dm, Scratch scratch);
// Enough for both, MatMulScratchBytes included.
int64_t DoraDropoutScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out, int64_t rank);

}  // namespace thimble
