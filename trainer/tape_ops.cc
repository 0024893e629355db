#include "trainer/tape_ops.h"

#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/bias.h"
#include "ops/elementwise.h"
#include "ops/embedding.h"
#include "ops/rms_norm.h"
#include "ops/rope.h"
#include "ops/swiglu.h"
#include "trainer/backward.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

// Columns in groups of `dim` as rows of their own: [T, n * dim] -> [T * n, dim]. Values are contiguous.
ConstMatrix Grouped(ConstMatrix x, int64_t dim) { return {x.data, x.rows * x.cols / dim, dim}; }
Matrix Grouped(Matrix x, int64_t dim) { return {x.data, x.rows * x.cols / dim, dim}; }

void AppendBiasGradient(Backward& b, ValueId dy, ValueId bias) {
  if (bias == kNoValue || !b.Needs(bias)) return;
  Step step;
  step.op = "bias_backward";
  step.inputs = {dy, b.ParameterGradient(bias)};
  step.run = [](const StepContext& c) { BiasBackward(c.In(0), c.MutableVector(1)); };
  b.tape().Append(std::move(step));
}

}  // namespace

int64_t LinearScratchBytes(const Tape& tape, ValueId x, ValueId w, Compute compute) {
  return MatMulScratchBytes(compute, tape.value(x).rows, tape.value(w).cols, tape.value(w).rows);
}

void AppendWeightGradient(Backward& b, ValueId dy, ValueId x, ValueId w, Compute compute) {
  Step step;
  step.op = "matmul_tn";
  step.inputs = {dy, x, b.ParameterGradient(w)};
  step.scratch_bytes = LinearScratchBytes(b.tape(), x, w, compute);
  step.run = [compute](const StepContext& c) {
    MatMulTN(c.In(0), c.In(1), c.Mutable(2), {.compute = compute, .accumulate = true}, c.scratch());
  };
  b.tape().Append(std::move(step));
}

void AppendInputGradient(Backward& b, ValueId dy, ValueId x, ValueId w, const WeightSource& source, Compute compute) {
  const ValueId so_far = b.Gradient(x);
  const ValueId dx = b.NewGradient(x);
  Step step;
  step.op = source.op;
  step.inputs = {dy};
  step.inputs.insert(step.inputs.end(), source.inputs.begin(), source.inputs.end());
  step.outputs = {dx};
  step.scratch_bytes = LinearScratchBytes(b.tape(), x, w, compute);
  const bool accumulate = so_far != kNoValue;
  const int last = static_cast<int>(step.inputs.size());
  if (accumulate) {
    step.inputs.push_back(so_far);
    step.in_place = {{0, last}};
  }
  step.run = [compute, accumulate, last, read = source.read, cols = b.tape().value(w).cols](const StepContext& c) {
    if (accumulate) CopyIfApart(c.In(last), c.Out(0));
    MatMulNN(c.In(0), read(c, cols), c.Out(0), {.compute = compute, .accumulate = accumulate}, c.scratch());
  };
  b.tape().Append(std::move(step));
  b.SetGradient(x, dx);
}

void AppendInputGradient(Backward& b, ValueId dy, ValueId x, ValueId w, Compute compute) {
  const auto stored = [](const StepContext& c, int64_t) { return c.Weight(1); };
  AppendInputGradient(b, dy, x, w, {"matmul_nn", {w}, stored}, compute);
}

ValueId RecordBias(Tape* tape, ValueId x, ValueId bias, const std::string& name) {
  if (bias == kNoValue) return x;
  const ValueId y = tape->Activation(name, tape->value(x).rows, tape->value(x).cols);
  Step step;
  step.op = "bias";
  step.inputs = {x, bias};
  step.outputs = {y};
  step.in_place = {{0, 0}};
  step.run = [](const StepContext& c) {
    CopyIfApart(c.In(0), c.Out(0));
    BiasForward(c.InVector(1), c.Out(0));
  };
  step.backward = [](Backward& b, const Step& s) {
    const ValueId dy = b.Gradient(s.outputs[0]);
    AppendBiasGradient(b, dy, s.inputs[1]);
    b.AddGradient(s.inputs[0], dy);
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordEmbedding(Tape* tape, ValueId table, ValueId ids, int64_t first, int64_t rows, const std::string& name,
                        ValueId trained) {
  const ValueId y = tape->Activation(name, rows, tape->value(table).cols);
  Step step;
  step.op = "embedding";
  step.inputs = {ids, table};
  if (trained != kNoValue) step.inputs.push_back(trained);
  step.outputs = {y};
  step.run = [first, rows](const StepContext& c) { EmbeddingForward(c.Ints(0, first, rows), c.Weight(1), c.Out(0)); };
  step.backward = [first, rows](Backward& b, const Step& s) {
    Step back;
    back.op = "embedding_backward";
    back.inputs = {s.inputs[0], b.Gradient(s.outputs[0]), b.ParameterGradient(s.inputs.back())};
    back.run = [first, rows](const StepContext& c) {
      EmbeddingBackward(c.Ints(0, first, rows), c.In(1), c.Mutable(2));
    };
    b.tape().Append(std::move(back));
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordRmsNorm(Tape* tape, ValueId x, ValueId w, float eps, const std::string& name) {
  const int64_t rows = tape->value(x).rows;
  const int64_t cols = tape->value(x).cols;
  const int64_t dim = tape->value(w).cols;
  const ValueId y = tape->Activation(name, rows, cols);
  const ValueId rstd = tape->Activation(absl::StrCat(name, ".rstd"), rows, cols / dim);
  tape->MarkStatistic(rstd);
  for (ValueId id : {y, rstd}) tape->SetKind(id, ValueKind::kElementwise);
  Step step;
  step.op = "rms_norm";
  step.inputs = {x, w};
  step.outputs = {y, rstd};
  step.run = [dim, eps](const StepContext& c) {
    RmsNormForward(Grouped(c.In(0), dim), c.InVector(1), eps, Grouped(c.Out(0), dim), c.OutVector(1));
  };
  step.backward = [dim, rows, cols](Backward& b, const Step& s) {
    const ValueId x = s.inputs[0];
    const ValueId w = s.inputs[1];
    const ValueId dy = b.Gradient(s.outputs[0]);
    const ValueId dx = b.NewGradient(x);
    Step back;
    back.op = "rms_norm_backward";
    back.inputs = {b.Saved(x), w, b.Saved(s.outputs[1]), dy};
    back.outputs = {dx};
    back.scratch_bytes = RmsNormScratchBytes(rows * cols / dim, dim);
    const bool trained = b.Needs(w);
    if (trained) back.inputs.push_back(b.ParameterGradient(w));
    back.run = [dim, trained](const StepContext& c) {
      RmsNormBackward(Grouped(c.In(0), dim), c.InVector(1), c.InVector(2), Grouped(c.In(3), dim),
                      Grouped(c.Out(0), dim), trained ? c.MutableVector(4) : Vector(), c.scratch());
    };
    b.tape().Append(std::move(back));
    b.AddGradient(x, dx);
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordLinear(Tape* tape, ValueId x, ValueId w, ValueId bias, Compute compute, const std::string& name) {
  const ValueId y = tape->Activation(name, tape->value(x).rows, tape->value(w).rows);
  Step step;
  step.op = "matmul_nt";
  step.inputs = {x, w};
  step.outputs = {y};
  step.scratch_bytes = LinearScratchBytes(*tape, x, w, compute);
  step.run = [compute](const StepContext& c) {
    MatMulNT(c.In(0), c.Weight(1), c.Out(0), {.compute = compute}, c.scratch());
  };
  step.backward = [compute](Backward& b, const Step& s) {
    const ValueId dy = b.Gradient(s.outputs[0]);
    if (b.Needs(s.inputs[1])) AppendWeightGradient(b, dy, b.Saved(s.inputs[0]), s.inputs[1], compute);
    if (b.Needs(s.inputs[0])) AppendInputGradient(b, dy, s.inputs[0], s.inputs[1], compute);
  };
  tape->Append(std::move(step));
  return RecordBias(tape, y, bias, absl::StrCat(name, "+bias"));
}

RopeTableValues RecordRopeTable(Tape* tape, ValueId positions, std::vector<float> inv_freq, float attention_factor) {
  const int64_t tokens = tape->value(positions).cols;
  const int64_t half = static_cast<int64_t>(inv_freq.size());
  RopeTableValues table{tape->Activation("rope.cos", tokens, half), tape->Activation("rope.sin", tokens, half)};
  Step step;
  step.op = "rope_table";
  step.inputs = {positions};
  step.outputs = {table.cos, table.sin};
  const auto frequencies = std::make_shared<const std::vector<float>>(std::move(inv_freq));
  step.run = [frequencies, attention_factor](const StepContext& c) {
    RopeTable(c.Ints(0), ConstVector(frequencies->data(), static_cast<int64_t>(frequencies->size())), attention_factor,
              c.Out(0), c.Out(1));
  };
  tape->Append(std::move(step));
  return table;
}

ValueId RecordRope(Tape* tape, ValueId x, const RopeTableValues& table, int64_t first, int head_dim,
                   const std::string& name) {
  const int64_t rows = tape->value(x).rows;
  const ValueId y = tape->Activation(name, tape->value(x).rows, tape->value(x).cols);
  Step step;
  step.op = "rope";
  step.inputs = {x, table.cos, table.sin};
  step.outputs = {y};
  step.in_place = {{0, 0}};
  step.run = [first, rows, head_dim](const StepContext& c) {
    RopeForward(c.In(0), c.In(1).Rows(first, rows), c.In(2).Rows(first, rows), head_dim, c.Out(0));
  };
  step.backward = [first, rows, head_dim](Backward& b, const Step& s) {
    const ValueId dx = b.NewGradient(s.inputs[0]);
    Step back;
    back.op = "rope_backward";
    back.inputs = {b.Gradient(s.outputs[0]), b.Saved(s.inputs[1]), b.Saved(s.inputs[2])};
    back.outputs = {dx};
    back.in_place = {{0, 0}};
    back.run = [first, rows, head_dim](const StepContext& c) {
      RopeBackward(c.In(0), c.In(1).Rows(first, rows), c.In(2).Rows(first, rows), head_dim, c.Out(0));
    };
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dx);
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordGatedUnit(Tape* tape, GateActivation activation, ValueId gate, ValueId up, const std::string& name) {
  const ValueId y = tape->Activation(name, tape->value(gate).rows, tape->value(gate).cols);
  tape->SetKind(y, ValueKind::kElementwise);
  Step step;
  step.op = "swiglu";
  step.inputs = {gate, up};
  step.outputs = {y};
  step.run = [activation](const StepContext& c) { SwiGLUForward(c.In(0), c.In(1), c.Out(0), activation); };
  step.backward = [activation](Backward& b, const Step& s) {
    const ValueId dgate = b.NewGradient(s.inputs[0]);
    const ValueId dup = b.NewGradient(s.inputs[1]);
    Step back;
    back.op = "swiglu_backward";
    back.inputs = {b.Saved(s.inputs[0]), b.Saved(s.inputs[1]), b.Gradient(s.outputs[0])};
    back.outputs = {dgate, dup};
    back.in_place = {{0, 0}, {1, 1}};
    back.run = [activation](const StepContext& c) {
      SwiGLUBackward(c.In(0), c.In(1), c.In(2), c.Out(0), c.Out(1), activation);
    };
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dgate);
    b.AddGradient(s.inputs[1], dup);
  };
  tape->Append(std::move(step));
  return y;
}

ValueId RecordAdd(Tape* tape, ValueId a, ValueId b, const std::string& name) {
  const ValueId y = tape->Activation(name, tape->value(a).rows, tape->value(a).cols);
  Step step;
  step.op = "add";
  step.inputs = {a, b};
  step.outputs = {y};
  step.in_place = {{0, 1}, {0, 0}};
  step.run = [](const StepContext& c) { Add(c.In(0), c.In(1), c.Out(0)); };
  step.backward = [](Backward& back, const Step& s) {
    const ValueId dy = back.Gradient(s.outputs[0]);
    back.AddGradient(s.inputs[0], dy);
    back.AddGradient(s.inputs[1], dy);
  };
  tape->Append(std::move(step));
  return y;
}

}  // namespace thimble
