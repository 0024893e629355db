// Ternary weights as frozen models hold them: packed codes and one scale a matrix (Format::kTernary).
#pragma once

#include <cstdint>
#include <vector>

#include "ops/format.h"
#include "ops/quantize_4bit.h"

namespace thimble {

// Bytes of codes and scale.
int64_t TernaryBytes(int64_t rows, int64_t cols);

// What TernarizeWeight makes of a weight in any format.
QuantizedWeight QuantizeTernary(const WeightView& w);

// A matrix whose codes are pushed row by row.
class TernaryPacker {
 public:
  TernaryPacker(int64_t rows, int64_t cols);
  // cols values -1, 0 and 1.
  void PushRow(const int8_t* values);
  // After all rows. The values are multiplied by `scale`.
  QuantizedWeight Finish(float scale);

 private:
  QuantizedWeight weight_;
  int64_t row_ = 0;
};

// What a ternary weight's values are to be multiplied by so that QuantizeTernary gives the same codes and scale: 1 /
// share of values other than 0; 1 where there are none.
float MasterFactor(const WeightView& ternary);

}  // namespace thimble
