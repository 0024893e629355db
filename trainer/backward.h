// Appends the gradient steps of a recorded forward pass. Every value that a gradient step needs is asked of one
// function, Saved(): all memory policies are cases of it, and none changes a bit of the gradients.
#pragma once

#include <utility>
#include <vector>

#include "trainer/save_plan.h"
#include "trainer/tape.h"
#include "trainer/transfers.h"

namespace thimble {

class Backward {
 public:
  Backward(Tape* tape, SavePlan plan) : tape_(*tape), plan_(std::move(plan)) {}

  // Walks the steps recorded so far in reverse and appends their gradient steps.
  void Run();

  // The value to read in a gradient step in place of `value` (the forward pass's): itself, or a copy whose producing
  // steps or transfer are appended here when it is first asked for.
  ValueId Saved(ValueId value);

  bool Needs(ValueId value) const { return tape_.value(value).needs_gradient; }
  // The gradient of a forward value gathered so far; kNoValue when there is none.
  ValueId Gradient(ValueId value) const;
  void SetGradient(ValueId value, ValueId gradient);
  // A fresh activation for the gradient of `value`.
  ValueId NewGradient(ValueId value);
  // Adds a finished contribution: the first one becomes the gradient, later ones are added to it.
  void AddGradient(ValueId value, ValueId contribution);
  // The store value of a trainable parameter's gradient, which steps accumulate into.
  ValueId ParameterGradient(ValueId parameter);

  Tape& tape() { return tape_; }

 private:
  ValueId Recompute(ValueId value);
  void RecomputeBoundaries(int32_t layer);
  ValueId Load(ValueId value, Placement tier);
  ValueId Decompressed(ValueId value, SaveAction action);
  void PlaceCompressions();
  void Remember(ValueId value, ValueId copy);

  Tape& tape_;
  SavePlan plan_;
  std::vector<ValueId> gradients_;                // by forward value
  std::vector<ValueId> copies_;                   // by forward value: recomputed or loaded
  std::vector<ValueId> slots_;                    // by value
  std::vector<ValueId> compressed_;               // by forward value
  std::vector<ValueId> remembered_;               // forward values in the order in which they got copies
  std::vector<std::vector<ValueId>> boundaries_;  // of each layer, in the order of their producers
  std::vector<PendingPut> puts_;
};

}  // namespace thimble
