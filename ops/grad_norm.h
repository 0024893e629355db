// The global norm of gradients and the factor that clips it, as torch.nn.utils.clip_grad_norm_ but summed in double.
#pragma once

#include "ops/view.h"

namespace thimble {

// Sum of squares, every square and sum in double, in an order fixed by the size: the same bits for any thread count.
// A NaN gives NaN, an infinity infinity; finite floats cannot overflow it. The norm of several tensors is the square
// root of the sum of theirs.
double SumOfSquares(ConstVector x);

// min(1, max_norm / (norm + 1e-6)); 1 when max_norm is 0 (off). An infinite norm gives 0 and a NaN norm NaN, so that a
// caller which does not test the norm (it should, and skip the step) sees it in the parameters.
float ClipFactor(double norm, double max_norm);

}  // namespace thimble
