// Appends the gradient steps of a recorded forward pass. Every value that a gradient step needs is asked of one
// function, Saved(): all memory policies are cases of it, and none changes a bit of the gradients.
#pragma once

#include <vector>

#include "trainer/tape.h"

namespace thimble {

enum class SavePolicy : uint8_t {
  kKeep,       // every value stays until its gradient step
  kRecompute,  // inside a decoder layer, values are computed again from the layer's input
};

class Backward {
 public:
  Backward(Tape* tape, SavePolicy policy) : tape_(*tape), policy_(policy) {}

  // Walks the steps recorded so far in reverse and appends their gradient steps.
  void Run();

  // The value to read in a gradient step in place of `value` (the forward pass's): itself, or its recomputed copy,
  // whose producing steps are appended here when it is first asked for.
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
  Tape& tape_;
  SavePolicy policy_;
  std::vector<ValueId> gradients_;   // by forward value
  std::vector<ValueId> recomputed_;  // by forward value
};

}  // namespace thimble
