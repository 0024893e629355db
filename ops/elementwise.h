// Element-wise kernels over matrices of the same shape. Outputs are written and may be the inputs.
#pragma once

#include "ops/view.h"

namespace thimble {

// y = a + b.
void Add(ConstMatrix a, ConstMatrix b, Matrix y);
// y = factor * x.
void Scale(float factor, ConstMatrix x, Matrix y);
// y = value.
void Fill(float value, Matrix y);
// y = x.
void Copy(ConstMatrix x, Matrix y);

}  // namespace thimble
