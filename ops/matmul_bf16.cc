#include "ops/matmul_bf16.h"

namespace thimble {

Bf16Path ActiveBf16Path() { return Bf16Path::kRounded; }
const MatMulKernels* Bf16Kernels() { return nullptr; }

}  // namespace thimble
