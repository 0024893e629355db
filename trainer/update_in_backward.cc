#include "trainer/update_in_backward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/grad_norm.h"
#include "trainer/update.h"

namespace thimble {
namespace {

// A trained parameter on its way through the tape.
struct Trained {
  StoreId id = -1;
  ValueId parameter = kNoValue;
  ValueId store_gradient = kNoValue;  // what gradient steps were recorded with
  ValueId gradient = kNoValue;        // in the arena
  int32_t first_sum = -1;             // step; -1: no gradient reaches it
  int32_t last_read = -1;
  std::vector<Step> updates;
};

Step ZeroStep(ValueId value) {
  Step step;
  step.op = "zero";
  step.outputs = {value};
  step.run = [](const StepContext& c) {
    const Vector values = c.OutVector(0);
    std::memset(values.data, 0, sizeof(float) * static_cast<size_t>(values.size));
  };
  return step;
}

// Doubles kept in a value of floats.
double* Doubles(Vector floats) { return reinterpret_cast<double*>(floats.data); }

class Rewriter {
 public:
  Rewriter(Tape* tape, const OptimizerOptions& options) : tape_(*tape), options_(options) {
    for (StoreId id : tape_.store().Trainable()) {
      const StoreEntry& entry = tape_.store().entry(id);
      Trained trained;
      trained.id = id;
      trained.parameter = tape_.Persistent(id);
      trained.store_gradient = tape_.Persistent(entry.gradient);
      trained.gradient = tape_.Activation(absl::StrCat(entry.name, "#gradient"), entry.rows, entry.cols);
      trained_.push_back(std::move(trained));
    }
    squares_ = tape_.Activation("gradient_squares", 1, 2 * static_cast<int64_t>(trained_.size()));
  }

  std::vector<Step> Rewrite() {
    FindUses();
    PlaceUpdates();
    return std::move(steps_);
  }

 private:
  void FindUses() {
    std::vector<int32_t> of_value(tape_.values().size(), -1);
    for (size_t i = 0; i < trained_.size(); ++i) {
      of_value[trained_[i].parameter] = static_cast<int32_t>(i);
      of_value[trained_[i].store_gradient] = static_cast<int32_t>(i);
    }
    const int32_t count = static_cast<int32_t>(tape_.steps().size());
    for (int32_t s = 0; s < count; ++s) {
      for (ValueId input : tape_.steps()[s].inputs) {
        if (of_value[input] < 0) continue;
        Trained& trained = trained_[of_value[input]];
        trained.last_read = s;
        if (input == trained.store_gradient && trained.first_sum < 0) trained.first_sum = s;
      }
    }
    starts_.resize(static_cast<size_t>(count));
    ends_.resize(static_cast<size_t>(count));
    for (size_t i = 0; i < trained_.size(); ++i) {
      // One that no gradient reaches has a gradient of zeros, which moves it where its moments or its decay do.
      if (trained_[i].last_read < 0) trained_[i].last_read = count - 1;
      if (trained_[i].first_sum < 0) trained_[i].first_sum = trained_[i].last_read;
      starts_[trained_[i].first_sum].push_back(i);
      ends_[trained_[i].last_read].push_back(i);
    }
  }

  void PlaceUpdates() {
    std::vector<Step> updates;
    for (const std::vector<size_t>& of_step : ends_) {
      for (size_t i : of_step) {
        Trained& trained = trained_[i];
        trained.updates = UpdateSteps(&tape_, trained.id, trained.gradient, i, options_, &RunScalars::gradient_squares);
        updates.insert(updates.end(), trained.updates.begin(), trained.updates.end());
      }
    }
    UpdatePlacer placer(&tape_, std::move(updates));
    steps_.push_back(ZeroStep(squares_));
    for (size_t s = 0; s < starts_.size(); ++s) {
      for (size_t i : starts_[s]) steps_.push_back(ZeroStep(trained_[i].gradient));
      steps_.push_back(WithArenaGradients(tape_.steps()[s]));
      for (size_t i : ends_[s]) {
        steps_.push_back(SquaresStep(i));
        for (size_t part = 0; part < trained_[i].updates.size(); ++part) placer.PlaceNext(&steps_);
      }
    }
    placer.Finish(&steps_);
    steps_.push_back(NormStep());
  }

  Step WithArenaGradients(Step step) const {
    for (ValueId& input : step.inputs) {
      const Value& value = tape_.value(input);
      if (value.placement != Placement::kStore || !tape_.store().entry(value.store).in_arena) continue;
      const auto owner = std::find_if(trained_.begin(), trained_.end(),
                                      [input](const Trained& trained) { return trained.store_gradient == input; });
      CHECK(owner != trained_.end()) << value.name;
      input = owner->gradient;
    }
    return step;
  }

  // Kept by parameter and added in the order of their declaration, as RecordUpdate does.
  Step SquaresStep(size_t index) const {
    Step step;
    step.op = "gradient_squares";
    step.inputs = {trained_[index].gradient, squares_};
    step.run = [index](const StepContext& c) {
      c.scalars().gradient_squares = SumOfSquares(c.InVector(0));
      Doubles(c.MutableVector(1))[index] = c.scalars().gradient_squares;
    };
    return step;
  }

  Step NormStep() const {
    Step step;
    step.op = "grad_norm";
    step.inputs = {squares_};
    step.run = [](const StepContext& c) {
      const Vector squares = c.MutableVector(0);
      double sum = 0;
      for (int64_t i = 0; i < squares.size / 2; ++i) sum += Doubles(squares)[i];
      c.scalars().grad_norm = std::sqrt(sum);
    };
    return step;
  }

  Tape& tape_;
  const OptimizerOptions& options_;
  std::vector<Trained> trained_;
  ValueId squares_ = kNoValue;
  std::vector<std::vector<size_t>> starts_;  // by step: parameters whose gradients begin in front of it
  std::vector<std::vector<size_t>> ends_;    // by step: parameters that are updated behind it
  std::vector<Step> steps_;
};

}  // namespace

void RecordUpdatesInBackward(Tape* tape, const OptimizerOptions& options) {
  CHECK_EQ(options.max_grad_norm, 0) << "the norm is known only when all gradients are";
  tape->SetLayer(-1);
  tape->ReplaceSteps(Rewriter(tape, options).Rewrite());
}

}  // namespace thimble
