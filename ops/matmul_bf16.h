// Matrix product kernels on bf16 pairs: AVX512_BF16's vdpbf16ps, which adds two products to a lane at a time and takes
// subnormal numbers as zero.
#pragma once

#include "ops/compute.h"
#include "ops/matmul_kernel.h"

namespace thimble {

enum class Bf16Path : uint8_t {
  kRounded,   // operands are rounded while they are packed, then multiplied in f32
  kDot,       // vdpbf16ps
  kTiles,     // tdpbf16ps (matmul_amx.h)
  kDistrust,  // the processor has vdpbf16ps, but it disagreed with the rounded path beyond rounding: kRounded is used
};

// The path in use at the active CPU level. The first call on a processor with tdpbf16ps or vdpbf16ps checks it on a
// small product (AmxAgrees, Bf16KernelsAgree); tiles that fail leave kDot.
Bf16Path ActiveBf16Path();

// The table of vdpbf16ps, or null where ActiveBf16Path() is another: then F32Kernels() on rounded operands.
const MatMulKernels* Bf16Kernels();

// Whether products of that arithmetic run on tiles.
bool OnTiles(Compute compute);

// Whether a table on pairs and the f32 table give the same products of rounded operands, but for the rounding of their
// sums: every number of rows, an odd depth, one panel and two, full and partial tiles. The tables pack alike.
bool Bf16KernelsAgree(const MatMulKernels& pairs, const MatMulKernels& f32);

// Makes Bf16Kernels() return a table of the test's while not null.
void SetBf16KernelsForTest(const MatMulKernels* kernels);

}  // namespace thimble
