// BitNet b1.58's linear layers: int8 inputs by ternary weights, straight-through gradients.
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/bit_linear.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

// Bytes that are no floats, and numbers on which all of them depend: never compressed.
ValueId Whole(Tape* tape, const std::string& name, int64_t rows, int64_t cols) {
  const ValueId id = tape->Activation(name, rows, cols);
  tape->MarkStatistic(id);
  return id;
}

// dw += dy^T x', x' being the dequantised input.
void AppendTernaryWeightGradient(Backward& b, const Step& s, ValueId dy, Compute compute) {
  const ValueId w = s.inputs[2], x = s.inputs[3];
  const Value shape = b.tape().value(x);
  const ValueId rounded = b.tape().Activation(absl::StrCat(shape.name, "~"), shape.rows, shape.cols);
  Step decode;
  decode.op = "dequantize_rows";
  decode.inputs = {b.Saved(s.inputs[0]), b.Saved(s.inputs[1])};
  decode.outputs = {rounded};
  decode.run = [](const StepContext& c) { DequantizeRowsInt8(c.In(0), c.InVector(1), c.Out(0)); };
  b.tape().Append(std::move(decode));
  AppendWeightGradient(b, dy, rounded, w, compute);
}

// dx = dy W', W' being the dequantised weight.
void AppendTernaryInputGradient(Backward& b, const Step& s, ValueId dy, Compute compute) {
  const auto dequantised = [](const StepContext& c, int64_t cols) { return TernaryView(c.In(1), cols, c.In(2).data); };
  const WeightSource source = {"bit_linear_backward", {b.Saved(s.inputs[4]), b.Saved(s.inputs[5])}, dequantised};
  AppendInputGradient(b, dy, s.inputs[3], s.inputs[2], source, compute);
}

// y = x' W^T of a stored ternary weight.
Step ProductStep(Tape* tape, const Int8Rows& rows, ValueId w, const std::string& name) {
  const int64_t tokens = tape->value(rows.scale).cols;
  const Value weight = tape->value(w);
  Step step;
  step.op = "bit_linear";
  step.inputs = {rows.values, rows.scale, w};
  step.outputs = {tape->Activation(name, tokens, weight.rows)};
  step.scratch_bytes = BitLinearScratchBytes(tokens, weight.cols);
  step.run = [](const StepContext& c) { BitLinearForward(c.In(0), c.InVector(1), c.Weight(2), c.Out(0), c.scratch()); };
  return step;
}

}  // namespace

Int8Rows RecordQuantizeRows(Tape* tape, ValueId x, const std::string& name) {
  const Value shape = tape->value(x);
  const Int8Rows rows{Whole(tape, name, shape.rows, Int8RowWords(shape.cols)),
                      Whole(tape, absl::StrCat(name, ".scale"), 1, shape.rows)};
  Step step;
  step.op = "quantize_rows";
  step.inputs = {x};
  step.outputs = {rows.values, rows.scale};
  step.run = [](const StepContext& c) { QuantizeRowsInt8(c.In(0), c.Out(0), c.OutVector(1)); };
  tape->Append(std::move(step));
  return rows;
}

TernaryWeight RecordTernarize(Tape* tape, ValueId w, const std::string& name) {
  const Value shape = tape->value(w);
  const TernaryWeight ternary{Whole(tape, name, shape.rows, TernaryRowWords(shape.cols)),
                              Whole(tape, absl::StrCat(name, ".gamma"), 1, 1)};
  Step step;
  step.op = "ternarize";
  step.inputs = {w};
  step.outputs = {ternary.codes, ternary.gamma};
  step.scratch_bytes = TernarizeScratchBytes(shape.rows);
  step.run = [](const StepContext& c) { TernarizeWeight(c.Weight(0), c.Out(0), c.OutVector(1).data, c.scratch()); };
  tape->Append(std::move(step));
  return ternary;
}

ValueId RecordBitLinear(Tape* tape, ValueId x, const Int8Rows& rows, ValueId w, const TernaryWeight& ternary,
                        ValueId bias, Compute compute, const std::string& name) {
  const bool stored = ternary.codes == kNoValue;
  const int64_t cols = tape->value(w).cols;
  Step step = ProductStep(tape, rows, w, name);
  const ValueId y = step.outputs[0];
  // x is read in its quantised form alone; the gradients are those of the quantised forms.
  step.inputs.push_back(x);
  if (!stored) {
    // And so is a weight that trains.
    step.inputs.insert(step.inputs.end(), {ternary.codes, ternary.gamma});
    step.run = [cols](const StepContext& c) {
      BitLinearForward(c.In(0), c.InVector(1), TernaryView(c.In(4), cols, c.In(5).data), c.Out(0), c.scratch());
    };
  }
  step.backward = [compute, stored](Backward& b, const Step& s) {
    const ValueId dy = b.Gradient(s.outputs[0]), w = s.inputs[2], x = s.inputs[3];
    if (b.Needs(w)) AppendTernaryWeightGradient(b, s, dy, compute);
    if (!b.Needs(x)) return;
    if (stored) {
      AppendInputGradient(b, dy, x, w, compute);
    } else {
      AppendTernaryInputGradient(b, s, dy, compute);
    }
  };
  tape->Append(std::move(step));
  return RecordBias(tape, y, bias, absl::StrCat(name, "+bias"));
}

ValueId RecordTernaryProduct(Tape* tape, const Int8Rows& rows, ValueId w, const std::string& name) {
  Step step = ProductStep(tape, rows, w, name);
  const ValueId y = step.outputs[0];
  tape->Append(std::move(step));
  return y;
}

}  // namespace thimble
