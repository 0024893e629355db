// Matrix products with weights of any number format: the forward product of a linear layer and its two gradients.
//
// Every element of a result is a sum over the inner dimension in one order: blocks of kMatMulInnerBlock terms, each
// block one chain of fused multiply-adds in increasing index starting from zero, and the blocks' sums, times `scale`,
// added onto y in increasing order. The order depends on the inner size alone, so a row's bits depend neither on how
// many rows the call has nor on its place among them, the number of threads or the alignment: generating token by
// token repeats the bits of one call over all tokens. Levels without FMA round each product; bf16 pairs (see
// matmul_bf16.h) add two products at a time.
// Source of the blocking: Goto & van de Geijn 2008, ACM TOMS 34(3).
#pragma once

#include <cstdint>

#include "ops/compute.h"
#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

struct MatMulOptions {
  Compute compute = Compute::kF32;
  bool accumulate = false;  // y += scale * product instead of y = scale * product
  float scale = 1.0f;
};

inline constexpr int64_t kMatMulInnerBlock = 256;

// Scratch of the three products below for x[rows, in] and w[out, in] with NumThreads() threads: in f32 at most 512 KiB
// and 432 KiB a thread; on tiles, which round the left operand first, at most 4 MiB and 580 KiB a thread.
int64_t MatMulScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out);
// Of f32 products of any shape.
int64_t MatMulScratchBytes();

// y[M, N] = x[M, K] w[N, K]^T: forward. Weights are decoded tile by tile while they are packed.
void MatMulNT(ConstMatrix x, const WeightView& w, Matrix y, const MatMulOptions& options, Scratch scratch);
// dx[M, K] = dy[M, N] w[N, K]: gradient of the input.
void MatMulNN(ConstMatrix dy, const WeightView& w, Matrix dx, const MatMulOptions& options, Scratch scratch);
// dw[N, K] = dy[M, N]^T x[M, K]: gradient of the weight (set `accumulate` for a parameter).
void MatMulTN(ConstMatrix dy, ConstMatrix x, Matrix dw, const MatMulOptions& options, Scratch scratch);

}  // namespace thimble
