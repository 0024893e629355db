// Matrix product kernels on bf16 pairs: AVX512_BF16's vdpbf16ps, two products a lane and step.
#pragma once

#include "ops/matmul_kernel.h"

namespace thimble {

enum class Bf16Path : uint8_t {
  kRounded,   // operands are rounded while they are packed, then multiplied in f32
  kDot,       // vdpbf16ps
  kDistrust,  // the processor has vdpbf16ps, but it disagreed with the rounded path beyond rounding; kRounded is used
};

// The path in use at the active CPU level. The first call with a processor that has vdpbf16ps compares both paths on
// a small product.
Bf16Path ActiveBf16Path();

// The table of vdpbf16ps, or null where ActiveBf16Path() is another: then F32Kernels() on rounded operands.
const MatMulKernels* Bf16Kernels();

}  // namespace thimble
