#include "trainer/update.h"

#include <cmath>
#include <utility>

#include "ops/adamw.h"
#include "ops/check.h"
#include "ops/grad_norm.h"

namespace thimble {
namespace {

void RecordGradNorm(Tape* tape, double max_norm) {
  const std::vector<StoreId> trainable = tape->store().Trainable();
  Step norm;
  norm.op = "grad_norm";
  for (StoreId id : trainable) norm.inputs.push_back(tape->Persistent(tape->store().entry(id).gradient));
  const int count = static_cast<int>(trainable.size());
  norm.run = [count, max_norm](const StepContext& c) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += SumOfSquares(c.InVector(i));
    c.scalars().grad_norm = std::sqrt(sum);
    c.scalars().clip_factor = std::isfinite(sum) ? ClipFactor(c.scalars().grad_norm, max_norm) : 0.0f;
  };
  tape->Append(std::move(norm));
}

AdamWOptions AdamWOptionsOf(const OptimizerOptions& options, double weight_decay, const RunScalars& scalars) {
  return {.learning_rate = scalars.learning_rate,
          .beta1 = options.beta1,
          .beta2 = options.beta2,
          .eps = options.eps,
          .weight_decay = weight_decay,
          .step = scalars.optimizer_step};
}

// The step's inputs are the gradient, the parameter, then its state.
void RecordParameter(Tape* tape, StoreId id, const OptimizerOptions& options) {
  const StoreEntry& entry = tape->store().entry(id);
  CHECK(!entry.state.empty()) << entry.name << " has no optimiser state";
  const double weight_decay = entry.decay || options.decay_all ? options.weight_decay : 0.0;
  Step step;
  step.inputs = {tape->Persistent(entry.gradient), tape->Persistent(id)};
  for (StoreId state : entry.state) step.inputs.push_back(tape->Persistent(state));
  step.op = NameOf(options.kind);
  std::function<void(const StepContext&)> update;
  switch (options.kind) {
    case OptimizerKind::kAdamW:
      update = [options, weight_decay](const StepContext& c) {
        AdamWUpdate(c.InVector(0), c.scalars().clip_factor, AdamWOptionsOf(options, weight_decay, c.scalars()),
                    c.MutableVector(1), c.MutableVector(2), c.MutableVector(3));
      };
      break;
  }
  step.run = [update = std::move(update)](const StepContext& c) {
    if (std::isfinite(c.scalars().grad_norm)) update(c);
  };
  tape->Append(std::move(step));
}

}  // namespace

void RecordUpdate(Tape* tape, const OptimizerOptions& options) {
  RecordGradNorm(tape, options.max_grad_norm);
  for (StoreId id : tape->store().Trainable()) RecordParameter(tape, id, options);
}

}  // namespace thimble
