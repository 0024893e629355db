// Low-rank adapter of a linear layer: y += scale * dropout(x) a^T b^T, a [rank, in], b [out, rank].
// Source: Hu et al. 2021, arXiv:2106.09685; form and gradients as in PEFT.
#pragma once

#include <cstdint>

#include "ops/matmul.h"
#include "ops/view.h"

namespace thimble {

// Inverted dropout: an element is 0 with probability p, else divided by 1 - p. The mask of element (row, col) is a
// function of (seed, counter, row, col) alone: a recompute repeats it. Every adapter needs its own seed; counter is set
// once a micro-step.
struct LoraDropout {
  float p = 0;  // in [0, 1)
  uint64_t seed = 0;
  uint64_t counter = 0;
  int64_t first_row = 0;  // added to the rows below: of a tile of a longer x
};

// y = dropout(x), x's first row being row first_row of the mask. x, y [rows, cols]; y is written and may be x.
void ApplyLoraDropout(ConstMatrix x, const LoraDropout& dropout, int64_t first_row, Matrix y);
// y += dropout(x): the gradient's way back.
void AddLoraDropout(ConstMatrix x, const LoraDropout& dropout, int64_t first_row, Matrix y);

// xa [T, rank] = dropout(x) a^T, written; x [T, in]; a without gaps between rows. With dropout only a tile of
// dropout(x) exists at a time, in scratch.
void LoraDown(ConstMatrix x, ConstMatrix a, const LoraDropout& dropout, Compute compute, Matrix xa, Scratch scratch);
// y [T, out] += scale * xa b^T; b without gaps between rows.
void LoraUp(ConstMatrix xa, ConstMatrix b, float scale, Compute compute, Matrix y, Scratch scratch);
// Both: xa is written and saved for backward, y ACCUMULATED.
void LoraForward(ConstMatrix x, ConstMatrix a, ConstMatrix b, float scale, const LoraDropout& dropout, Compute compute,
                 Matrix xa, Matrix y, Scratch scratch);

// dx [T, in] is ACCUMULATED onto what is there, or empty (data null) when not needed; da and db are accumulated.
void LoraBackward(ConstMatrix x, ConstMatrix a, ConstMatrix b, float scale, const LoraDropout& dropout, Compute compute,
                  ConstMatrix xa, ConstMatrix dy, Matrix dx, Matrix da, Matrix db, Scratch scratch);

// Enough for all of them, MatMulScratchBytes included: T * rank floats and a tile of about 1 MiB.
int64_t LoraScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out, int64_t rank);

}  // namespace thimble
