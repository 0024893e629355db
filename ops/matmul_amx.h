// Matrix products on AMX tiles of bf16 (tdpbf16ps): 16 by 16 sums of 32 products an instruction. Operands are rounded
// to bf16, nearest even; subnormal numbers count as zero.
#pragma once

#include <cstdint>

#include "ops/matmul_product.h"
#include "ops/view.h"

namespace thimble {

// Inner indices that make one chain of sums (MatMulTN: kMatMulInnerBlock); the chains' sums, times the scale, are added
// onto y in increasing order.
inline constexpr int64_t kAmxInnerBlock = 4096;

// Scratch of MultiplyAmx with NumThreads() threads.
int64_t AmxScratchBytes(int64_t rows, int64_t cols, int64_t inner);

// The product with bf16 operands. Needs HasAmx(); rows, cols and inner are positive. A row's bits depend on `inner`
// alone.
void MultiplyAmx(const MatMulProduct& product, Scratch scratch);

// Whether tdpbf16ps, the packing and the edges of this machine give a small product right.
bool AmxAgrees();

}  // namespace thimble
