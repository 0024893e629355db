// Linear layers with low-rank adapters: LoRA and DoRA.
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/dora.h"
#include "ops/lora.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

LoraDropout DropoutOf(const LoraSpec& lora, const StepContext& c) {
  return {lora.dropout, lora.seed, c.scalars().dropout_counter, lora.first_row};
}

// dx of the frozen weight, then the adapter's share added to it; da and db accumulated.
void AppendLoraBackward(Backward& b, const Step& s, ValueId x, const LoraSpec& lora, ValueId w, Compute compute) {
  const ValueId dy = b.Gradient(s.outputs[0]);
  const bool need_dx = b.Needs(x);
  Tape& tape = b.tape();
  Step back;
  back.op = "lora_backward";
  // Asked first: what is computed again must not find dx alive already.
  back.inputs = {
      b.Saved(x), lora.a, lora.b, b.Saved(s.inputs[1]), dy, b.ParameterGradient(lora.a), b.ParameterGradient(lora.b)};
  if (need_dx) AppendInputGradient(b, dy, x, w, compute);
  const int64_t rank = tape.value(lora.a).rows;
  back.scratch_bytes = LoraScratchBytes(compute, tape.value(x).rows, tape.value(x).cols, tape.value(dy).cols, rank);
  if (need_dx) {
    const ValueId sum = b.NewGradient(x);
    back.inputs.push_back(b.Gradient(x));
    back.outputs = {sum};
    back.in_place = {{0, 7}};
    b.SetGradient(x, sum);
  }
  back.run = [lora, compute, need_dx](const StepContext& c) {
    if (need_dx) CopyIfApart(c.In(7), c.Out(0));
    LoraBackward(c.In(0), c.In(1), c.In(2), lora.scale, DropoutOf(lora, c), compute, c.In(3), c.In(4),
                 need_dx ? c.Out(0) : Matrix(), c.Mutable(5), c.Mutable(6), c.scratch());
  };
  tape.Append(std::move(back));
}

// y += scale * dropout(x) A^T B^T, in place. The narrow product is a step of its own: when its result is computed
// again, the wide ones are not.
ValueId RecordLora(Tape* tape, ValueId y, ValueId x, ValueId w, const LoraSpec& lora, Compute compute,
                   const std::string& name) {
  const int64_t tokens = tape->value(x).rows;
  const int64_t rank = tape->value(lora.a).rows;
  const ValueId xa = tape->Activation(absl::StrCat(name, ".xa"), tokens, rank);
  Step down;
  down.op = "lora_down";
  down.inputs = {x, lora.a};
  down.outputs = {xa};
  down.scratch_bytes = LoraScratchBytes(compute, tokens, tape->value(x).cols, tape->value(y).cols, rank);
  down.run = [lora, compute](const StepContext& c) {
    LoraDown(c.In(0), c.In(1), DropoutOf(lora, c), compute, c.Out(0), c.scratch());
  };
  // No backward of its own: that of the step below appends the gradients of both matrices.
  tape->Append(std::move(down));
  const ValueId sum = tape->Activation(absl::StrCat(name, "+lora"), tokens, tape->value(y).cols);
  Step up;
  up.op = "lora_up";
  up.inputs = {y, xa, lora.b};
  up.outputs = {sum};
  up.in_place = {{0, 0}};
  up.scratch_bytes = MatMulScratchBytes(compute, tokens, rank, tape->value(y).cols);
  up.run = [lora, compute](const StepContext& c) {
    CopyIfApart(c.In(0), c.Out(0));
    LoraUp(c.In(1), c.In(2), lora.scale, compute, c.Out(0), c.scratch());
  };
  up.backward = [lora, x, w, compute](Backward& b, const Step& s) { AppendLoraBackward(b, s, x, lora, w, compute); };
  tape->Append(std::move(up));
  return sum;
}

// n_o = ||W_o + scale (BA)_o||, a constant in backward.
ValueId RecordDoraNorm(Tape* tape, ValueId w, const LoraSpec& lora, const std::string& name) {
  const ValueId norm = tape->Activation(absl::StrCat(name, ".norm"), 1, tape->value(w).rows);
  tape->MarkStatistic(norm);
  Step step;
  step.op = "dora_norm";
  step.inputs = {w, lora.a, lora.b};
  step.outputs = {norm};
  step.scratch_bytes = DoraNormScratchBytes(tape->value(w).cols);
  step.run = [scale = lora.scale](const StepContext& c) {
    DoraNorm(c.Weight(0), c.In(1), c.In(2), scale, c.OutVector(0), c.scratch());
  };
  tape->Append(std::move(step));
  return norm;
}

// y = m / norm * z.
ValueId RecordDora(Tape* tape, ValueId z, ValueId norm, const LoraSpec& lora, const std::string& name) {
  const ValueId y = tape->Activation(absl::StrCat(name, "+dora"), tape->value(z).rows, tape->value(z).cols);
  Step step;
  step.op = "dora";
  step.inputs = {z, lora.magnitude, norm};
  step.outputs = {y};
  step.in_place = {{0, 0}};
  step.run = [](const StepContext& c) { DoraForward(c.InVector(1), c.InVector(2), c.In(0), c.Out(0)); };
  step.backward = [](Backward& b, const Step& s) {
    const ValueId dz = b.NewGradient(s.inputs[0]);
    Step back;
    back.op = "dora_backward";
    back.inputs = {b.Saved(s.inputs[0]), s.inputs[1], b.Saved(s.inputs[2]), b.Gradient(s.outputs[0]),
                   b.ParameterGradient(s.inputs[1])};
    back.outputs = {dz};
    back.in_place = {{0, 3}};
    back.run = [](const StepContext& c) {
      DoraBackward(c.InVector(1), c.InVector(2), c.In(0), c.In(3), c.Out(0), c.MutableVector(4));
    };
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dz);
  };
  tape->Append(std::move(step));
  return y;
}

void AppendDoraDropoutBackward(Backward& b, const Step& s, const LoraSpec& lora, Compute compute) {
  const ValueId x = s.inputs[1];
  const ValueId w = s.inputs[2];
  const ValueId dy = b.Gradient(s.outputs[0]);
  const bool need_dx = b.Needs(x);
  Step back;
  back.op = "dora_dropout_backward";
  back.inputs = {b.Saved(x),
                 w,
                 lora.a,
                 lora.b,
                 lora.magnitude,
                 b.Saved(s.inputs[6]),
                 b.Saved(s.outputs[1]),
                 dy,
                 b.ParameterGradient(lora.a),
                 b.ParameterGradient(lora.b),
                 b.ParameterGradient(lora.magnitude)};
  back.scratch_bytes = s.scratch_bytes;
  if (need_dx) {
    AppendInputGradient(b, dy, x, w, compute);
    back.inputs.push_back(b.Gradient(x));
    back.outputs = {b.NewGradient(x)};
    back.in_place = {{0, 11}};
    b.SetGradient(x, back.outputs[0]);
  }
  back.run = [lora, compute, need_dx](const StepContext& c) {
    if (need_dx) CopyIfApart(c.In(11), c.Out(0));
    DoraDropoutBackward(c.In(0), c.Weight(1), c.In(2), c.In(3), c.InVector(4), c.InVector(5), lora.scale,
                        DropoutOf(lora, c), compute, c.In(6), c.In(7), need_dx ? c.Out(0) : Matrix(), c.Mutable(8),
                        c.Mutable(9), c.MutableVector(10), c.scratch());
  };
  b.tape().Append(std::move(back));
}

// With active dropout the base product passes the mask as well, as in PEFT; `base` holds W x.
ValueId RecordDoraDropout(Tape* tape, ValueId base, ValueId x, ValueId w, ValueId norm, const LoraSpec& lora,
                          Compute compute, const std::string& name) {
  const int64_t tokens = tape->value(x).rows;
  const int64_t rank = tape->value(lora.a).rows;
  const int64_t out = tape->value(base).cols;
  const ValueId y = tape->Activation(absl::StrCat(name, "+dora"), tokens, out);
  const ValueId xa = tape->Activation(absl::StrCat(name, ".xa"), tokens, rank);
  Step step;
  step.op = "dora_dropout";
  step.inputs = {base, x, w, lora.a, lora.b, lora.magnitude, norm};
  step.outputs = {y, xa};
  step.in_place = {{0, 0}};
  step.scratch_bytes = DoraDropoutScratchBytes(compute, tokens, tape->value(x).cols, out, rank);
  step.run = [lora, compute](const StepContext& c) {
    CopyIfApart(c.In(0), c.Out(0));
    DoraDropoutForward(c.In(1), c.Weight(2), c.In(3), c.In(4), c.InVector(5), c.InVector(6), lora.scale,
                       DropoutOf(lora, c), compute, c.Out(1), c.Out(0), c.scratch());
  };
  step.backward = [lora, compute](Backward& b, const Step& s) { AppendDoraDropoutBackward(b, s, lora, compute); };
  tape->Append(std::move(step));
  return y;
}

}  // namespace

ValueId RecordLoraBeside(Tape* tape, ValueId base, ValueId x, ValueId w, ValueId bias, const LoraSpec& lora,
                         Compute compute, const std::string& name) {
  const ValueId y = RecordLora(tape, base, x, w, lora, compute, name);
  return RecordBias(tape, y, bias, absl::StrCat(name, "+bias"));
}

ValueId RecordLoraLinear(Tape* tape, ValueId x, ValueId w, ValueId bias, const LoraSpec& lora, Compute compute,
                         const std::string& name) {
  if (lora.a == kNoValue) return RecordLinear(tape, x, w, bias, compute, name);
  const ValueId base = tape->Activation(name, tape->value(x).rows, tape->value(w).rows);
  Step step;
  step.op = "matmul_nt";
  step.inputs = {x, w};
  step.outputs = {base};
  step.scratch_bytes = MatMulScratchBytes(compute, tape->value(x).rows, tape->value(w).cols, tape->value(w).rows);
  step.run = [compute](const StepContext& c) {
    MatMulNT(c.In(0), c.Weight(1), c.Out(0), {.compute = compute}, c.scratch());
  };
  // No backward of its own: the adapter's appends dx for both, so that one buffer gathers them.
  tape->Append(std::move(step));
  const bool dora = lora.magnitude != kNoValue;
  const ValueId norm = dora ? RecordDoraNorm(tape, w, lora, name) : kNoValue;
  ValueId y;
  if (dora && lora.dropout > 0) {
    y = RecordDoraDropout(tape, base, x, w, norm, lora, compute, name);
  } else {
    y = RecordLora(tape, base, x, w, lora, compute, name);
    if (dora) y = RecordDora(tape, y, norm, lora, name);
  }
  return RecordBias(tape, y, bias, absl::StrCat(name, "+bias"));
}

}  // namespace thimble
