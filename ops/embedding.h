// Token embedding: y_t = table[ids_t].
#pragma once

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// ids [T], each in [0, table.rows); y [T, table.cols] is written, decoded to f32.
void EmbeddingForward(ConstInts ids, const WeightView& table, Matrix y);
// dtable [V, D] accumulates dy [T, D]: row ids_t += dy_t, in the order of t. Work T * D; rows of absent tokens are not
// touched.
void EmbeddingBackward(ConstInts ids, ConstMatrix dy, Matrix dtable);

}  // namespace thimble
