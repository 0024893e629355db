// Pieces that several recorded ops share.
#pragma once

#include <cstring>
#include <string>
#include <string_view>
#include <vector>

#include "trainer/backward.h"
#include "trainer/tape_ops.h"

namespace thimble {

// For steps that may run in place: copies unless both are the same memory. Values are contiguous.
inline void CopyIfApart(ConstMatrix from, Matrix to) {
  if (from.data != to.data) std::memcpy(to.data, from.data, sizeof(float) * from.rows * from.cols);
}

// Of the products of a linear layer's input and weight.
int64_t LinearScratchBytes(const Tape& tape, ValueId x, ValueId w, Compute compute);

// dw += dy^T x; x is the value that is read.
void AppendWeightGradient(Backward& b, ValueId dy, ValueId x, ValueId w, Compute compute);

// How a step reads a weight: from `inputs`, which stand behind its first input.
struct WeightSource {
  std::string_view op;
  std::vector<ValueId> inputs;
  WeightView (*read)(const StepContext& c, int64_t cols);
};
// dx = dy W, added to what x's gradient holds already; W as `source` reads it, or as w is stored.
void AppendInputGradient(Backward& b, ValueId dy, ValueId x, ValueId w, const WeightSource& source, Compute compute);
void AppendInputGradient(Backward& b, ValueId dy, ValueId x, ValueId w, Compute compute);

// y = x + bias, in place; x itself when bias is kNoValue.
ValueId RecordBias(Tape* tape, ValueId x, ValueId bias, const std::string& name);

}  // namespace thimble
