// Training for a format: layers that compute with the weights and activations of the served model.
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/lora.h"
#include "ops/quantize_merged.h"
#include "ops/round_tokens.h"
#include "ops/scratch_buffer.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

// da and db of y = x (W + scale B A)^T; x A^T is computed here, as the forward pass has no use for it.
void AppendServedLoraGradient(Backward& b, ValueId dy, ValueId x, const LoraSpec& lora, Compute compute) {
  const Tape& tape = b.tape();
  const int64_t tokens = tape.value(x).rows, in = tape.value(x).cols, rank = tape.value(lora.a).rows;
  Step step;
  step.op = "served_lora_backward";
  step.inputs = {b.Saved(x), lora.a, lora.b, dy, b.ParameterGradient(lora.a), b.ParameterGradient(lora.b)};
  const int64_t own = Aligned(tokens * rank * static_cast<int64_t>(sizeof(float)));
  step.scratch_bytes = own + LoraScratchBytes(compute, tokens, in, tape.value(dy).cols, rank);
  step.run = [lora, compute, tokens, rank](const StepContext& c) {
    Scratch scratch = c.scratch();
    const Matrix xa(TakeScratch<float>(&scratch, tokens * rank), tokens, rank);
    LoraDown(c.In(0), c.In(1), {}, compute, xa, scratch);
    LoraBackward(c.In(0), c.In(1), c.In(2), lora.scale, {}, compute, xa, c.In(3), Matrix(), c.Mutable(4), c.Mutable(5),
                 scratch);
  };
  b.tape().Append(std::move(step));
}

}  // namespace

ValueId RecordServedLinear(Tape* tape, ValueId x, const ServedLinear& linear, ValueId bias, Compute compute,
                           const std::string& name) {
  const ValueId y = tape->Activation(name, tape->value(x).rows, tape->value(linear.served).rows);
  Step step;
  step.op = "matmul_nt";
  step.inputs = {x, linear.served};
  // Not read: they say whose gradients there are.
  for (const ValueId trained : {linear.trained, linear.lora.a, linear.lora.b}) {
    if (trained != kNoValue) step.inputs.push_back(trained);
  }
  step.outputs = {y};
  step.scratch_bytes = LinearScratchBytes(*tape, x, linear.served, compute);
  step.run = [compute](const StepContext& c) {
    MatMulNT(c.In(0), c.Weight(1), c.Out(0), {.compute = compute}, c.scratch());
  };
  step.backward = [linear, compute](Backward& b, const Step& s) {
    const ValueId x = s.inputs[0], dy = b.Gradient(s.outputs[0]);
    if (linear.lora.a != kNoValue) AppendServedLoraGradient(b, dy, x, linear.lora, compute);
    if (linear.trained != kNoValue && b.Needs(linear.trained)) {
      AppendWeightGradient(b, dy, b.Saved(x), linear.trained, compute);
    }
    if (b.Needs(x)) AppendInputGradient(b, dy, x, linear.served, compute);
  };
  tape->Append(std::move(step));
  return RecordBias(tape, y, bias, absl::StrCat(name, "+bias"));
}

ValueId RecordRoundTokens(Tape* tape, ValueId x, ActivationGrid grid, const std::string& name) {
  const ValueId y = tape->Activation(name, tape->value(x).rows, tape->value(x).cols);
  tape->SetKind(y, ValueKind::kElementwise);
  Step step;
  step.op = "round_tokens";
  step.inputs = {x};
  step.outputs = {y};
  step.in_place = {{0, 0}};
  step.run = [grid](const StepContext& c) { RoundTokens(c.In(0), grid, c.Out(0)); };
  step.backward = [](Backward& b, const Step& s) { b.AddGradient(s.inputs[0], b.Gradient(s.outputs[0])); };
  tape->Append(std::move(step));
  return y;
}

void RecordQuantizeMerged(Tape* tape, ValueId w, const LoraSpec& lora, ValueId served) {
  const bool adapter = lora.a != kNoValue;
  Step step;
  step.op = "quantize_merged";
  step.inputs = {w, served};
  if (adapter) step.inputs.insert(step.inputs.end(), {lora.a, lora.b});
  step.scratch_bytes = QuantizeMergedScratchBytes(tape->value(w).cols);
  step.run = [adapter, scale = lora.scale](const StepContext& c) {
    MergedWeight merged{c.Weight(0), {}, {}, scale};
    if (adapter) {
      merged.a = c.In(2);
      merged.b = c.In(3);
    }
    QuantizeMerged(merged, c.Weight(1), c.scratch());
  };
  tape->Append(std::move(step));
}

}  // namespace thimble
