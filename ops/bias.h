// Bias of a linear layer: y_tc = x_tc + b_c.
#pragma once

#include "ops/view.h"

namespace thimble {

// y [rows, cols] += b [cols] in every row, in place.
void BiasForward(ConstVector b, Matrix y);
// db [cols] += the column sums of dy [rows, cols]. Sums of 64 rows in float, those in double.
void BiasBackward(ConstMatrix dy, Vector db);

}  // namespace thimble
