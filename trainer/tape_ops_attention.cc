// Attention in training and in generation, and the loss head.
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/head_rows.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"

namespace thimble {

ValueId RecordAttention(Tape* tape, ValueId q, ValueId k, ValueId v, ValueId starts, const AttentionShape& shape,
                        const std::string& name) {
  const int64_t tokens = tape->value(q).rows;
  const ValueId out = tape->Activation(name, tokens, tape->value(q).cols);
  const ValueId lse = tape->Activation(absl::StrCat(name, ".lse"), tokens, shape.num_heads);
  tape->MarkStatistic(lse);
  for (ValueId id : {out, lse}) tape->SetKind(id, ValueKind::kAttention);
  Step step;
  step.op = "attention";
  step.inputs = {q, k, v, starts};
  step.outputs = {out, lse};
  step.scratch_bytes = AttentionScratchBytes(shape, tokens);
  step.run = [shape](const StepContext& c) {
    AttentionForward(c.In(0), c.In(1), c.In(2), c.Ints(3), shape, c.Out(0), c.Out(1), c.scratch());
  };
  step.backward = [shape, tokens](Backward& b, const Step& s) {
    const ValueId dq = b.NewGradient(s.inputs[0]);
    const ValueId dk = b.NewGradient(s.inputs[1]);
    const ValueId dv = b.NewGradient(s.inputs[2]);
    Step back;
    back.op = "attention_backward";
    back.inputs = {b.Saved(s.inputs[0]),  b.Saved(s.inputs[1]),     b.Saved(s.inputs[2]), b.Saved(s.outputs[0]),
                   b.Saved(s.outputs[1]), b.Gradient(s.outputs[0]), s.inputs[3]};
    back.outputs = {dq, dk, dv};
    back.scratch_bytes = AttentionScratchBytes(shape, tokens);
    back.run = [shape](const StepContext& c) {
      AttentionBackward(c.In(0), c.In(1), c.In(2), c.In(3), c.In(4), c.In(5), c.Ints(6), shape, c.Out(0), c.Out(1),
                        c.Out(2), c.scratch());
    };
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dq);
    b.AddGradient(s.inputs[1], dk);
    b.AddGradient(s.inputs[2], dv);
  };
  tape->Append(std::move(step));
  return out;
}

ValueId RecordCachedAttention(Tape* tape, ValueId q, ValueId k, ValueId v, ValueId k_cache, ValueId v_cache,
                              ValueId starts, const AttentionShape& shape, const std::string& name) {
  const int64_t tokens = tape->value(q).rows;
  const int64_t capacity = tape->value(k_cache).rows;
  const ValueId out = tape->Activation(name, tokens, tape->value(q).cols);
  const ValueId lse = tape->Activation(absl::StrCat(name, ".lse"), tokens, shape.num_heads);
  Step step;
  step.op = "cached_attention";
  step.inputs = {q, k, v, k_cache, v_cache, starts};
  step.outputs = {out, lse};
  step.scratch_bytes = AttentionScratchBytes(shape, capacity);
  step.run = [shape, tokens, capacity](const StepContext& c) {
    const int64_t past = c.scalars().past_tokens;
    CHECK_LE(past + tokens, capacity);
    const Matrix keys = c.Mutable(3).Rows(0, past + tokens);
    const Matrix values = c.Mutable(4).Rows(0, past + tokens);
    std::memcpy(keys.row(past), c.In(1).data, sizeof(float) * tokens * keys.cols);
    std::memcpy(values.row(past), c.In(2).data, sizeof(float) * tokens * values.cols);
    AttentionForward(c.In(0), keys, values, c.Ints(5), shape, c.Out(0), c.Out(1), c.scratch());
  };
  tape->Append(std::move(step));
  return out;
}

LossValues RecordLinearCrossEntropy(Tape* tape, ValueId hidden, ValueId head, ValueId targets, int64_t first,
                                    const LinearCrossEntropyOptions& options, bool train, ValueId trained) {
  const int64_t tokens = tape->value(hidden).rows;
  const int64_t dim = tape->value(hidden).cols;
  const LossValues values{tape->Activation("loss", 1, tokens), tape->Activation("lse", 1, tokens)};
  if (trained == kNoValue) trained = head;
  const bool frozen = !tape->value(trained).needs_gradient;
  Step step;
  step.inputs = {hidden, head, targets};
  step.outputs = {values.loss, values.lse};
  const int64_t fetched = HeadRows::FetchedRowBytes(tape->store().entry(tape->value(head).store).view);
  step.scratch_bytes = LinearCrossEntropyScratchBytes(tokens, dim, options, fetched);
  if (train && frozen && tape->value(hidden).needs_gradient) {
    // One pass: the gradient of the hidden states is ready with the loss.
    step.op = "linear_cross_entropy_fused";
    step.outputs.push_back(tape->Activation("dhidden", tokens, dim));
    step.run = [options, first, tokens](const StepContext& c) {
      LinearCrossEntropyFused(c.In(0), c.Weight(1), c.Ints(2, first, tokens), c.scalars().inverse_targets, options,
                              c.OutVector(0), c.OutVector(1), c.Out(2), c.scratch());
    };
    step.backward = [](Backward& b, const Step& s) { b.AddGradient(s.inputs[0], s.outputs[2]); };
    tape->Append(std::move(step));
    return values;
  }
  step.op = "linear_cross_entropy";
  step.run = [options, first, tokens](const StepContext& c) {
    LinearCrossEntropyForward(c.In(0), c.Weight(1), c.Ints(2, first, tokens), options, c.OutVector(0), c.OutVector(1),
                              c.scratch());
  };
  const int64_t scratch_bytes = step.scratch_bytes;
  step.backward = [options, frozen, scratch_bytes, first, tokens, trained](Backward& b, const Step& s) {
    Step back;
    back.op = "linear_cross_entropy_backward";
    back.inputs = {b.Saved(s.inputs[0]), s.inputs[1], s.inputs[2], b.Saved(s.outputs[1])};
    if (!frozen) back.inputs.push_back(b.ParameterGradient(trained));
    back.outputs = {b.NewGradient(s.inputs[0])};
    back.scratch_bytes = scratch_bytes;
    back.run = [options, frozen, first, tokens](const StepContext& c) {
      LinearCrossEntropyBackward(c.In(0), c.Weight(1), c.Ints(2, first, tokens), c.InVector(3),
                                 c.scalars().inverse_targets, options, c.Out(0), frozen ? Matrix() : c.Mutable(4),
                                 c.scratch());
    };
    const ValueId dh = back.outputs[0];
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dh);
  };
  tape->Append(std::move(step));
  return values;
}

namespace {

DistillationInputs DistillationViews(const StepContext& c, int64_t first, int64_t tokens) {
  return {c.In(0), c.Weight(1), c.In(2), c.Weight(3), c.Ints(4, first, tokens)};
}

}  // namespace

ValueId RecordLinearDistillation(Tape* tape, const DistillationValues& values, int64_t first,
                                 const LinearDistillationOptions& options) {
  const int64_t tokens = tape->value(values.hidden).rows;
  const ValueId trained = values.trained == kNoValue ? values.head : values.trained;
  const bool frozen = !tape->value(trained).needs_gradient;
  const ValueId loss = tape->Activation("loss", 1, tokens), divergence = tape->Activation("divergence", 1, tokens);
  const ValueId stats = tape->Activation("distillation_stats", tokens, kDistillationStats);
  const auto head_of = [tape](ValueId id) { return tape->store().entry(tape->value(id).store).view; };
  const int64_t scratch_bytes = LinearDistillationScratchBytes(head_of(values.head), head_of(values.teacher_head));
  Step step;
  step.op = "linear_distillation";
  step.inputs = {values.hidden, values.head, values.teacher_hidden, values.teacher_head, values.targets};
  step.outputs = {loss, divergence, stats};
  step.scratch_bytes = scratch_bytes;
  step.run = [options, first, tokens](const StepContext& c) {
    LinearDistillationForward(DistillationViews(c, first, tokens), options, c.OutVector(0), c.OutVector(1), c.Out(2),
                              c.scratch());
  };
  step.backward = [options, frozen, scratch_bytes, first, tokens, trained](Backward& b, const Step& s) {
    Step back;
    back.op = "linear_distillation_backward";
    back.inputs = {b.Saved(s.inputs[0]), s.inputs[1], b.Saved(s.inputs[2]),
                   s.inputs[3],          s.inputs[4], b.Saved(s.outputs[2])};
    if (!frozen) back.inputs.push_back(b.ParameterGradient(trained));
    back.outputs = {b.NewGradient(s.inputs[0])};
    back.scratch_bytes = scratch_bytes;
    back.run = [options, frozen, first, tokens](const StepContext& c) {
      LinearDistillationBackward(DistillationViews(c, first, tokens), c.In(5), c.scalars().inverse_targets, options,
                                 c.Out(0), frozen ? Matrix() : c.Mutable(6), c.scratch());
    };
    const ValueId dh = back.outputs[0];
    b.tape().Append(std::move(back));
    b.AddGradient(s.inputs[0], dh);
  };
  tape->Append(std::move(step));
  return loss;
}

}  // namespace thimble
