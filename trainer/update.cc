#include "trainer/update.h"

#include <cmath>
#include <utility>

#include "ops/adamw.h"
#include "ops/grad_norm.h"

namespace thimble {

void RecordUpdate(Tape* tape, const OptimizerOptions& options) {
  const std::vector<StoreId> trainable = tape->store().Trainable();
  Step norm;
  norm.op = "grad_norm";
  for (StoreId id : trainable) norm.inputs.push_back(tape->Persistent(tape->store().entry(id).gradient));
  const int count = static_cast<int>(trainable.size());
  norm.run = [count, max_norm = options.max_grad_norm](const StepContext& c) {
    double sum = 0;
    for (int i = 0; i < count; ++i) sum += SumOfSquares(c.InVector(i));
    c.scalars().grad_norm = std::sqrt(sum);
    c.scalars().clip_factor = std::isfinite(sum) ? ClipFactor(c.scalars().grad_norm, max_norm) : 0.0f;
  };
  tape->Append(std::move(norm));

  for (StoreId id : trainable) {
    const StoreEntry& entry = tape->store().entry(id);
    Step step;
    step.op = "adamw";
    step.inputs = {tape->Persistent(entry.gradient), tape->Persistent(id), tape->Persistent(entry.first_moment),
                   tape->Persistent(entry.second_moment)};
    step.run = [options, decay = entry.decay](const StepContext& c) {
      if (!std::isfinite(c.scalars().grad_norm)) return;
      AdamWOptions adamw;
      adamw.learning_rate = c.scalars().learning_rate;
      adamw.beta1 = options.beta1;
      adamw.beta2 = options.beta2;
      adamw.eps = options.eps;
      adamw.weight_decay = decay || options.decay_all ? options.weight_decay : 0.0;
      adamw.step = c.scalars().optimizer_step;
      AdamWUpdate(c.InVector(0), c.scalars().clip_factor, adamw, c.MutableVector(1), c.MutableVector(2),
                  c.MutableVector(3));
    };
    tape->Append(std::move(step));
  }
}

}  // namespace thimble
