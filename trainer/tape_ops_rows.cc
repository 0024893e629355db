// Rows of a value as values of their own, so that what follows runs tile by tile.
#include <functional>
#include <utility>

#include "ops/elementwise.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

// y = rows [begin, begin + rows of y) of x.
void AppendSlice(Tape* tape, ValueId x, int64_t begin, ValueId y) {
  Step step;
  step.op = "slice_rows";
  step.inputs = {x};
  step.outputs = {y};
  step.run = [begin](const StepContext& c) { Copy(c.In(0).Rows(begin, c.Out(0).rows), c.Out(0)); };
  tape->Append(std::move(step));
}

// `whole` with these rows set, in its memory. Where `so_far` is kNoValue, the other rows hold nothing yet.
void AppendSet(Tape* tape, ValueId so_far, ValueId rows, int64_t begin, ValueId whole,
               std::function<void(Backward&, const Step&)> backward) {
  Step step;
  step.op = "set_rows";
  const bool first = so_far == kNoValue;
  // The whole stands first: when both are computed again, it is complete up to here before these rows are.
  if (!first) {
    step.inputs.push_back(so_far);
    step.in_place = {{0, 0}};
  }
  step.inputs.push_back(rows);
  step.outputs = {whole};
  step.run = [begin, first](const StepContext& c) {
    if (!first) CopyIfApart(c.In(0), c.Out(0));
    const ConstMatrix rows = c.In(first ? 0 : 1);
    Copy(rows, c.Out(0).Rows(begin, rows.rows));
  };
  step.backward = std::move(backward);
  tape->Append(std::move(step));
}

}  // namespace

ValueId RecordSliceRows(Tape* tape, ValueId x, int64_t begin, int64_t rows, const std::string& name) {
  const ValueId y = tape->Activation(name, rows, tape->value(x).cols);
  Step step;
  step.op = "slice_rows";
  step.inputs = {x};
  step.outputs = {y};
  step.run = [begin](const StepContext& c) { Copy(c.In(0).Rows(begin, c.Out(0).rows), c.Out(0)); };
  step.backward = [begin](Backward& b, const Step& s) {
    const ValueId x = s.inputs[0];
    const ValueId dx = b.NewGradient(x);
    AppendSet(&b.tape(), b.Gradient(x), b.Gradient(s.outputs[0]), begin, dx, nullptr);
    b.SetGradient(x, dx);
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordSetRows(Tape* tape, ValueId so_far, ValueId rows, int64_t begin, int64_t total, const std::string& name) {
  const ValueId whole = tape->Activation(name, total, tape->value(rows).cols);
  AppendSet(tape, so_far, rows, begin, whole, [begin](Backward& b, const Step& s) {
    const ValueId dwhole = b.Gradient(s.outputs[0]);
    const ValueId rows = s.inputs.back();
    const ValueId drows = b.NewGradient(rows);
    AppendSlice(&b.tape(), dwhole, begin, drows);
    b.AddGradient(rows, drows);
    // What these rows held before is overwritten, and no tile below reads that part of the gradient.
    if (s.inputs.size() > 1) b.SetGradient(s.inputs[0], dwhole);
  });
  return whole;
}

}  // namespace thimble
