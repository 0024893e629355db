// The tape: values and the steps that compute them, in execution order. Recording computes nothing; the order of the
// list is the only order. Gradient and optimiser steps are ordinary steps.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "ops/format.h"
#include "ops/view.h"
#include "trainer/store.h"

namespace thimble {

class Backward;
class StepContext;

using ValueId = int32_t;
inline constexpr ValueId kNoValue = -1;

enum class DType : uint8_t { kF32, kI32 };

enum class Placement : uint8_t {
  kActivation,  // in the arena, from the step that writes it to the last step that reads it
  kInput,       // the batch, bound before a run
  kStore,       // a persistent tensor
  kHost,        // a slot of the host tier, from its put to the last wait for its get
  kDisk,        // a slot of the spill file, likewise
};

// What a layer's value is to a plan of saved values: how much it costs to compute it again.
enum class ValueKind : uint8_t {
  kInner,        // a matrix product, and what passes over its result
  kBoundary,     // the residual stream between layers: what "recompute" keeps
  kAttention,    // the result of attention and its statistics: grows with the square of the sequence
  kElementwise,  // of norms and of the MLP's gate: one pass over values that are saved anyway
};

// Steps that move bytes between tiers; the executor runs them itself.
enum class TransferKind : uint8_t {
  kNone,
  kPut,   // input value -> output slot, or a fetched part of optimiser state back to where it came from; begun
  kGet,   // input slot -> output value, begun
  kWait,  // until the first input's transfer is over; further inputs only live as long
};

struct Value {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::kF32;
  Placement placement = Placement::kActivation;
  StoreId store = -1;  // of kStore values and fetched copies of them
  int32_t layer = -1;  // decoder layer that computes it, -1 outside of layers
  ValueKind kind = ValueKind::kInner;
  bool statistic = false;       // of rows: never compressed
  bool needs_gradient = false;  // a trainable parameter, or computed from one
  int32_t producer = -1;        // index of the step that writes it, -1 for inputs and store values
  int64_t packed_bytes = 0;     // of a fetched copy of the weight `store`: its packed form
  int64_t store_offset = 0;     // of a fetched part of the optimiser state `store`: where it begins there, in bytes
  int64_t bytes() const { return packed_bytes > 0 ? packed_bytes : rows * cols * 4; }
};

struct Step {
  std::string_view op;  // "rms_norm", "rms_norm_backward"; static storage
  std::vector<ValueId> inputs;
  std::vector<ValueId> outputs;
  // {output, input} positions: the output may take the input's memory when the input is not needed after this step.
  // A kernel must also work when it does not.
  std::vector<std::pair<int, int>> in_place;
  int64_t scratch_bytes = 0;
  // Reads and writes values by position, so that a step can be emitted again with other ids (recompute).
  std::function<void(const StepContext&)> run;
  // Appends the gradient steps; empty when no gradient passes.
  std::function<void(Backward&, const Step&)> backward;
  int32_t layer = -1;
  TransferKind transfer = TransferKind::kNone;
};

class Tape {
 public:
  explicit Tape(const Store* store) : store_(store) {}

  ValueId Input(std::string name, int64_t rows, int64_t cols, DType dtype);
  // The value of a store entry; the same id for the same entry.
  ValueId Persistent(StoreId id);
  ValueId Activation(std::string name, int64_t rows, int64_t cols);
  // A slot of another tier for a value of this one's size.
  ValueId Slot(ValueId of, Placement tier);
  // The compressed form of an activation; `words` a row.
  ValueId Compressed(ValueId of, int64_t words);
  // Where a streamed weight's bytes are fetched to.
  ValueId FetchedWeight(StoreId id);
  // Where `count` floats of an offloaded optimiser state are fetched to, [1, count].
  ValueId FetchedState(StoreId id, int64_t first, int64_t count);
  // Appends a step; its outputs need a gradient when an input does and the step has a backward.
  void Append(Step step);

  // Values and steps recorded from now on belong to this layer (-1: none).
  void SetLayer(int32_t layer) { layer_ = layer; }
  int32_t layer() const { return layer_; }
  // The same steps in another order, with transfers placed among them. TakeSteps leaves none until then.
  std::vector<Step> TakeSteps() { return std::move(steps_); }
  void ReplaceSteps(std::vector<Step> steps);

  void SetKind(ValueId id, ValueKind kind) { values_[id].kind = kind; }
  void MarkStatistic(ValueId id) { values_[id].statistic = true; }

  const Value& value(ValueId id) const { return values_[id]; }
  const std::vector<Value>& values() const { return values_; }
  const std::vector<Step>& steps() const { return steps_; }
  const Store& store() const { return *store_; }
  // One line a step: "rms_norm x, w -> y, rstd"; for tests and --verbose plans.
  std::string DebugString() const;

 private:
  const Store* store_;
  std::vector<Value> values_;
  std::vector<Step> steps_;
  std::vector<ValueId> by_store_;
  int32_t layer_ = -1;
};

// Numbers that change from run to run without changing the tape.
struct RunScalars {
  float inverse_targets = 0;     // 1 / number of targets of the whole accumulated batch
  uint64_t dropout_counter = 0;  // one per micro-step
  int64_t past_tokens = 0;       // rows already in the key/value caches
  double learning_rate = 0;
  double decay_factor = 1;      // of weight decay
  int64_t optimizer_step = 0;   // from 1
  double grad_norm = 0;         // written by the grad_norm step
  double gradient_squares = 0;  // with updates in backward: sum of squares of the gradient that is complete
  float clip_factor = 1;        // written by the grad_norm step
};

// What a step sees while it runs: its values by position.
class StepContext {
 public:
  StepContext(const Tape& tape, const Step& step, const std::vector<void*>& addresses, Scratch scratch,
              RunScalars* scalars)
      : tape_(tape), step_(step), addresses_(addresses), scratch_(scratch), scalars_(scalars) {}

  ConstMatrix In(int i) const { return View(step_.inputs[i]); }
  Matrix Out(int i) const { return View(step_.outputs[i]); }
  Vector OutVector(int i) const { return Flat(step_.outputs[i]); }
  ConstVector InVector(int i) const { return Flat(step_.inputs[i]); }
  ConstInts Ints(int i) const;
  ConstInts Ints(int i, int64_t first, int64_t count) const { return {Ints(i).data + first, count}; }
  // An input as a weight: a store entry in its format, or an f32 value.
  WeightView Weight(int i) const;
  // An f32 store entry that the step accumulates into (a parameter's gradient), given as an input.
  Matrix Mutable(int i) const { return View(step_.inputs[i]); }
  Vector MutableVector(int i) const { return Flat(step_.inputs[i]); }
  Scratch scratch() const { return scratch_; }
  RunScalars& scalars() const { return *scalars_; }

 private:
  Matrix View(ValueId id) const {
    const Value& value = tape_.value(id);
    return Matrix(static_cast<float*>(addresses_[id]), value.rows, value.cols);
  }
  Vector Flat(ValueId id) const {
    const Value& value = tape_.value(id);
    return Vector(static_cast<float*>(addresses_[id]), value.rows * value.cols);
  }

  const Tape& tape_;
  const Step& step_;
  const std::vector<void*>& addresses_;
  Scratch scratch_;
  RunScalars* scalars_;
};

}  // namespace thimble
