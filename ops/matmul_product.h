// One matrix product, whichever of its forms: what the cores behind ops/matmul.h work on.
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/matmul.h"
#include "ops/view.h"

namespace thimble {

// An operand: element (lane, k) of the product's row or column `lane` and inner index k.
struct MatMulOperand {
  const float* data = nullptr;         // null: `weight` holds the values
  int64_t stride = 0;                  // between rows of the matrix in memory
  bool inner_first = false;            // rows in memory are inner indices rather than lanes
  const WeightView* weight = nullptr;  // any format; its rows are lanes unless inner_first
};

// y[rows, cols] from left [rows, inner] and right [cols, inner]. The left operand is never a weight.
struct MatMulProduct {
  int64_t rows, cols, inner;
  MatMulOperand left, right;
  Matrix y;
  MatMulOptions options;
};

}  // namespace thimble
