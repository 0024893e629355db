#include "trainer/update.h"

#include <algorithm>
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
          .weight_decay = weight_decay * scalars.decay_factor,
          .step = scalars.optimizer_step};
}

using Update = std::function<void(const StepContext&)>;

// Elements of a parameter that one step updates; its state is that of these elements alone.
struct Part {
  int64_t first = 0;
  int64_t count = 0;
};

ConstVector PartOf(ConstVector v, const Part& part) { return {v.data + part.first, part.count}; }
Vector PartOf(Vector v, const Part& part) { return {v.data + part.first, part.count}; }

// Every update reads the gradient as input 0, the parameter as 1 and its state from 2 on.
Update AdamW(const OptimizerOptions& options, double weight_decay, const Part& part) {
  return [options, weight_decay, part](const StepContext& c) {
    AdamWUpdate(PartOf(c.InVector(0), part), c.scalars().clip_factor,
                AdamWOptionsOf(options, weight_decay, c.scalars()), PartOf(c.MutableVector(1), part),
                c.MutableVector(2), c.MutableVector(3));
  };
}

uint8_t* CodesOf(Vector words) { return reinterpret_cast<uint8_t*>(words.data); }

Update AdamW8Bit(const OptimizerOptions& options, double weight_decay, const Part& part) {
  return [options, weight_decay, part](const StepContext& c) {
    AdamW8BitUpdate(PartOf(c.InVector(0), part), c.scalars().clip_factor,
                    AdamWOptionsOf(options, weight_decay, c.scalars()), options.moment_rounding,
                    PartOf(c.MutableVector(1), part),
                    {CodesOf(c.MutableVector(2)), CodesOf(c.MutableVector(3)), c.MutableVector(4), c.MutableVector(5)});
  };
}

Update Lion(const OptimizerOptions& options, double weight_decay, const Part& part) {
  return [options, weight_decay, part](const StepContext& c) {
    const LionOptions lion = {c.scalars().learning_rate, options.beta1, options.beta2,
                              weight_decay * c.scalars().decay_factor};
    LionUpdate(PartOf(c.InVector(0), part), c.scalars().clip_factor, lion, PartOf(c.MutableVector(1), part),
               c.MutableVector(2));
  };
}

Update Adafactor(double weight_decay, bool vector) {
  return [weight_decay, vector](const StepContext& c) {
    AdafactorOptions adafactor;
    adafactor.learning_rate = c.scalars().learning_rate;
    adafactor.weight_decay = weight_decay * c.scalars().decay_factor;
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
    apollo.weight_decay = weight_decay * c.scalars().decay_factor;
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

// Whether the optimiser treats the parameter's elements one by one (in blocks of 256, adamw8bit).
bool IsElementwise(const OptimizerOptions& options, const StoreEntry& entry) {
  if (options.kind == OptimizerKind::kAdafactor) return false;
  return options.kind != OptimizerKind::kApollo || entry.state.size() != 3;
}

// The arithmetic of a step; what an optimiser does not treat in its own way is left to AdamW.
void SetUpdate(const OptimizerOptions& options, const StoreEntry& entry, const Part& part, uint64_t stream,
               Update* update, Step* step) {
  const double weight_decay = entry.decay || options.decay_all ? options.weight_decay : 0.0;
  const size_t states = entry.state.size();
  *update = AdamW(options, weight_decay, part);
  switch (options.kind) {
    case OptimizerKind::kAdamW:
      break;
    case OptimizerKind::kAdamW8Bit:
      if (states == 4) *update = AdamW8Bit(options, weight_decay, part);
      break;
    case OptimizerKind::kLion:
      *update = Lion(options, weight_decay, part);
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

// The state of a part, in a tier: the same share of every tensor, codes counted in words of four.
ValueId FetchedPart(Tape* tape, StoreId state, const Part& part, int64_t elements) {
  const StoreEntry& entry = tape->store().entry(state);
  const int64_t size = entry.rows * entry.cols;
  if (part.count == elements) return tape->FetchedState(state, 0, size);
  int64_t of_element = 1;  // elements of the parameter for each float of the state
  if (entry.codes > 0) of_element = 4;
  if (entry.codes == 0 && size < elements) of_element = kMomentBlockSize;
  const int64_t first = part.first / of_element;
  return tape->FetchedState(state, first,
                            std::min(size, (part.first + part.count + of_element - 1) / of_element) - first);
}

Step Transfer(TransferKind kind, const char* op, std::vector<ValueId> inputs, std::vector<ValueId> outputs) {
  Step step;
  step.op = op;
  step.transfer = kind;
  step.inputs = std::move(inputs);
  step.outputs = std::move(outputs);
  return step;
}

}  // namespace

std::vector<Step> UpdateSteps(Tape* tape, StoreId id, ValueId gradient, uint64_t stream,
                              const OptimizerOptions& options, double RunScalars::*unless_finite) {
  const StoreEntry& entry = tape->store().entry(id);
  CHECK(!entry.state.empty()) << entry.name << " has no optimiser state";
  const bool fetched = tape->store().entry(entry.state[0]).slot >= 0;
  const int64_t elements = entry.rows * entry.cols;
  const int64_t part_size = fetched && IsElementwise(options, entry) ? kUpdatePart : elements;
  std::vector<Step> steps;
  for (int64_t first = 0; first < elements; first += part_size) {
    const Part part = {first, std::min(part_size, elements - first)};
    Step step;
    step.op = NameOf(options.kind);
    step.inputs = {gradient, tape->Persistent(id)};
    for (StoreId state : entry.state) {
      step.inputs.push_back(fetched ? FetchedPart(tape, state, part, elements) : tape->Persistent(state));
    }
    Update update;
    SetUpdate(options, entry, part, stream, &update, &step);
    step.run = [update = std::move(update), unless_finite](const StepContext& c) {
      if (std::isfinite(c.scalars().*unless_finite)) update(c);
    };
    steps.push_back(std::move(step));
  }
  return steps;
}

UpdatePlacer::UpdatePlacer(Tape* tape, std::vector<Step> updates) : tape_(*tape) {
  for (Step& step : updates) {
    Placed placed;
    for (ValueId input : step.inputs) {
      const Value& value = tape_.value(input);
      if (value.placement == Placement::kActivation && value.store >= 0) placed.fetched.push_back(input);
    }
    placed.step = std::move(step);
    updates_.push_back(std::move(placed));
  }
}

void UpdatePlacer::Fetch(size_t index, std::vector<Step>* steps) {
  if (index >= updates_.size()) return;
  for (ValueId id : updates_[index].fetched) {
    steps->push_back(Transfer(TransferKind::kGet, "get", {tape_.Persistent(tape_.value(id).store)}, {id}));
  }
}

void UpdatePlacer::WaitForWrites(size_t index, std::vector<Step>* steps) {
  for (ValueId id : updates_[index].fetched) steps->push_back(Transfer(TransferKind::kWait, "wait", {id}, {}));
}

void UpdatePlacer::PlaceNext(std::vector<Step>* steps) {
  const size_t index = next_++;
  if (index == 0) Fetch(0, steps);
  Fetch(index + 1, steps);
  const std::vector<ValueId>& fetched = updates_[index].fetched;
  for (ValueId id : fetched) steps->push_back(Transfer(TransferKind::kWait, "wait", {id}, {}));
  steps->push_back(updates_[index].step);
  for (ValueId id : fetched) {
    steps->push_back(Transfer(TransferKind::kPut, "put", {id, tape_.Persistent(tape_.value(id).store)}, {}));
  }
  if (index > 0) WaitForWrites(index - 1, steps);
}

void UpdatePlacer::Finish(std::vector<Step>* steps) {
  CHECK_EQ(next_, updates_.size());
  if (!updates_.empty()) WaitForWrites(updates_.size() - 1, steps);
}

void RecordUpdate(Tape* tape, const OptimizerOptions& options) {
  RecordGradNorm(tape, options.max_grad_norm);
  uint64_t stream = 0;
  std::vector<Step> updates;
  for (StoreId id : tape->store().Trainable()) {
    const ValueId gradient = tape->Persistent(tape->store().entry(id).gradient);
    for (Step& step : UpdateSteps(tape, id, gradient, stream, options, &RunScalars::grad_norm)) {
      updates.push_back(std::move(step));
    }
    ++stream;
  }
  const size_t count = updates.size();
  UpdatePlacer placer(tape, std::move(updates));
  std::vector<Step> steps;
  for (size_t i = 0; i < count; ++i) placer.PlaceNext(&steps);
  placer.Finish(&steps);
  for (Step& step : steps) tape->Append(std::move(step));
}

}  // namespace thimble
