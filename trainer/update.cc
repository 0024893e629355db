#include "trainer/update.h"

#include <cmath>
#include <functional>
#include <utility>

#include "ops/adafactor.h"
#include "ops/adamw.h"
#include "ops/adamw_8bit.h"
#include "ops/apollo.h"
#include "ops/check.h"
#include "ops/grad_norm.h"
#include "ops/lion.h"
#include "ops/scratch_carver.h"

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

using Update = std::function<void(const StepContext&)>;

// Every update reads the gradient as input 0, the parameter as 1 and its state from 2 on.
Update AdamW(const OptimizerOptions& options, double weight_decay) {
  return [options, weight_decay](const StepContext& c) {
    AdamWUpdate(c.InVector(0), c.scalars().clip_factor, AdamWOptionsOf(options, weight_decay, c.scalars()),
                c.MutableVector(1), c.MutableVector(2), c.MutableVector(3));
  };
}

uint8_t* CodesOf(Vector words) { return reinterpret_cast<uint8_t*>(words.data); }

Update AdamW8Bit(const OptimizerOptions& options, double weight_decay) {
  return [options, weight_decay](const StepContext& c) {
    AdamW8BitUpdate(c.InVector(0), c.scalars().clip_factor, AdamWOptionsOf(options, weight_decay, c.scalars()),
                    options.moment_rounding, c.MutableVector(1),
                    {CodesOf(c.MutableVector(2)), CodesOf(c.MutableVector(3)), c.MutableVector(4), c.MutableVector(5)});
  };
}

Update Lion(const OptimizerOptions& options, double weight_decay) {
  return [options, weight_decay](const StepContext& c) {
    const LionOptions lion = {c.scalars().learning_rate, options.beta1, options.beta2, weight_decay};
    LionUpdate(c.InVector(0), c.scalars().clip_factor, lion, c.MutableVector(1), c.MutableVector(2));
  };
}

Update Adafactor(double weight_decay, bool vector) {
  return [weight_decay, vector](const StepContext& c) {
    AdafactorOptions adafactor;
    adafactor.learning_rate = c.scalars().learning_rate;
    adafactor.weight_decay = weight_decay;
    adafactor.step = c.scalars().optimizer_step;
    const float clip = c.scalars().clip_factor;
    if (vector) {
      AdafactorVectorUpdate(c.InVector(0), clip, adafactor, c.MutableVector(1), c.MutableVector(2), c.scratch());
    } else {
      AdafactorUpdate(c.In(0), clip, adafactor, c.Mutable(1), c.MutableVector(2), c.MutableVector(3), c.scratch());
    }
  };
}

// `stream` tells the parameter's random numbers from those of the others.
Update Apollo(const OptimizerOptions& options, double weight_decay, uint64_t stream) {
  return [options, weight_decay, stream](const StepContext& c) {
    ApolloOptions apollo;
    apollo.learning_rate = c.scalars().learning_rate;
    apollo.beta1 = options.beta1;
    apollo.beta2 = options.beta2;
    apollo.eps = options.eps;
    apollo.weight_decay = weight_decay;
    apollo.scale = options.projection_scale;
    apollo.projection_steps = options.projection_steps;
    apollo.rank = options.projection_rank;
    apollo.seed = options.seed;
    apollo.stream = stream;
    apollo.step = c.scalars().optimizer_step;
    const ConstMatrix grad = c.In(0);
    ScratchCarver carver(c.scratch());
    const int64_t size = ApolloProjectionSize(grad.rows, grad.cols, apollo.rank);
    const Vector projection(carver.Take<float>(size), size);
    const int64_t rest = ApolloScratchBytes(grad.rows, grad.cols, apollo.rank);
    ApolloProjection(apollo, grad.rows, grad.cols, projection);
    ApolloUpdate(grad, c.scalars().clip_factor, projection, apollo, c.Mutable(1), c.MutableVector(2),
                 c.MutableVector(3), c.MutableVector(4), {carver.Take<char>(rest), rest});
  };
}

int64_t ApolloStepScratchBytes(int64_t rows, int64_t cols, int64_t rank) {
  ScratchCarver counting;
  counting.Take<float>(ApolloProjectionSize(rows, cols, rank));
  counting.Take<char>(ApolloScratchBytes(rows, cols, rank));
  return counting.used();
}

// The arithmetic of one parameter's step; what an optimiser does not treat in its own way is left to AdamW.
void SetUpdate(const OptimizerOptions& options, const StoreEntry& entry, uint64_t stream, Update* update, Step* step) {
  const double weight_decay = entry.decay || options.decay_all ? options.weight_decay : 0.0;
  const size_t states = entry.state.size();
  *update = AdamW(options, weight_decay);
  switch (options.kind) {
    case OptimizerKind::kAdamW:
      break;
    case OptimizerKind::kAdamW8Bit:
      if (states == 4) *update = AdamW8Bit(options, weight_decay);
      break;
    case OptimizerKind::kLion:
      *update = Lion(options, weight_decay);
      break;
    case OptimizerKind::kAdafactor:
      *update = Adafactor(weight_decay, /*vector=*/states == 1);
      step->scratch_bytes = AdafactorScratchBytes(entry.rows, entry.cols);
      break;
    case OptimizerKind::kApollo:
      if (states != 3) break;
      *update = Apollo(options, weight_decay, stream);
      step->scratch_bytes = ApolloStepScratchBytes(entry.rows, entry.cols, options.projection_rank);
      break;
  }
}

void RecordParameter(Tape* tape, StoreId id, uint64_t stream, const OptimizerOptions& options) {
  const StoreEntry& entry = tape->store().entry(id);
  CHECK(!entry.state.empty()) << entry.name << " has no optimiser state";
  Step step;
  step.op = NameOf(options.kind);
  step.inputs = {tape->Persistent(entry.gradient), tape->Persistent(id)};
  for (StoreId state : entry.state) step.inputs.push_back(tape->Persistent(state));
  Update update;
  SetUpdate(options, entry, stream, &update, &step);
  step.run = [update = std::move(update)](const StepContext& c) {
    if (std::isfinite(c.scalars().grad_norm)) update(c);
  };
  tape->Append(std::move(step));
}

}  // namespace

void RecordUpdate(Tape* tape, const OptimizerOptions& options) {
  RecordGradNorm(tape, options.max_grad_norm);
  uint64_t stream = 0;
  for (StoreId id : tape->store().Trainable()) RecordParameter(tape, id, stream++, options);
}

}  // namespace thimble
