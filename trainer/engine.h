// Tapes, plans and one arena for a declared model: training micro-steps, the update, evaluation.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "data/packing.h"
#include "ops/linear_cross_entropy.h"
#include "trainer/backward.h"
#include "trainer/decoder.h"
#include "trainer/executor.h"
#include "trainer/memory_plan.h"
#include "trainer/record_decoder.h"
#include "trainer/tape_ops.h"
#include "trainer/update.h"

namespace thimble {

struct PlannedTape;

struct EngineOptions {
  SavePlan activations = SavePolicy::kRecompute;
  int64_t mlp_tile = 0;       // tokens of a tile of the MLP, see RecordOptions
  int64_t sequence_tile = 0;  // of everything but attention, see RecordOptions
  // Where values go that no step needs for a while (idle_values.h); kActivation: they stay.
  Placement idle_tier = Placement::kActivation;
  std::string spill_folder;  // of the disk tier; empty: TMPDIR or /tmp
  LinearCrossEntropyOptions loss;
  LinearDistillationOptions distillation;  // in training, where the decoder has a teacher, in place of `loss`
  OptimizerOptions optimizer;
  // Where the decoder has served weights: whether some micro-steps train without them, see TrainUnserved.
  bool trains_unserved = false;
  int64_t max_tokens = 0;  // of a micro-batch in training
  bool train = true;       // false: evaluation only, no training tape is planned
  // Engine::shared_update() of an engine with the same store and optimiser, for plans that differ in the rest; null:
  // the update is planned here.
  std::shared_ptr<PlannedTape> update;
};

// A recorded and planned tape.
struct PlannedTape {
  explicit PlannedTape(const Store* store) : tape(store) {}
  Tape tape;
  TierPlans plan;
  DecoderInputs inputs;
  std::vector<ValueId> losses;  // of each tile
  ValueId hidden = kNoValue;    // pinned where the tape is for it
};

// What a schedule says for one update.
struct StepRates {
  StepRates(double learning_rate, double decay_factor = 1)  // NOLINT(google-explicit-constructor): a rate is rates
      : learning_rate(learning_rate), decay_factor(decay_factor) {}
  double learning_rate;
  double decay_factor;
};

class Engine {
 public:
  // Records and plans the largest shapes; allocates nothing. `decoder` and `store` outlive the engine.
  Engine(const Decoder* decoder, Store* store, const EngineOptions& options);

  // Bytes of the arena: the largest peak of all tapes. Exact before anything runs.
  int64_t arena_bytes() const { return arena_bytes_; }
  int64_t arena_lower_bound_bytes() const { return lower_bound_bytes_; }
  int64_t arena_high_water_bytes() const { return arena_ ? arena_->high_water_bytes() : 0; }
  int64_t tier_bytes(Placement tier) const { return tier == Placement::kHost ? host_bytes_ : disk_bytes_; }
  // Null before Prepare() and where nothing goes there.
  const Tier* tier(Placement tier) const { return tier == Placement::kHost ? host_.get() : disk_.get(); }
  // Takes the memory of all tiers; an error names the spill folder. Otherwise the first step does it.
  absl::Status Prepare();
  // The first failure of a transfer or of taking memory; what was computed since then is not to be used.
  const absl::Status& status() const { return status_; }
  // The plan of the largest training (or, without training, evaluation) tape.
  const PlannedTape& largest() const { return *largest_; }
  // The plan of the optimiser's update; null without training and where updates happen in backward.
  const PlannedTape* update() const { return update_.planned.get(); }
  std::shared_ptr<PlannedTape> shared_update() const { return update_.planned; }

  // Forward and backward; gradients are accumulated. Returns the sum of the loss over targets.
  double TrainMicroStep(const Batch& batch, float inverse_targets, uint64_t dropout_counter);
  // Where parameters are updated in backward (options.optimizer.in_backward), in place of TrainMicroStep and Update:
  // one optimiser step on one micro-batch. Returns the sum of the loss over targets.
  double TrainAndUpdate(const Batch& batch, float inverse_targets, uint64_t dropout_counter, const StepRates& rates,
                        int64_t optimizer_step, double* grad_norm);
  // Whether training micro-steps from now on take the weights as they train in place of the served ones. Evaluation
  // always takes the served ones.
  void TrainUnserved(bool unserved);
  bool updates_in_backward() const { return options_.optimizer.in_backward; }
  void ZeroGradients();
  // One optimiser step with the gathered gradients. Returns the gradient norm before clipping.
  double Update(const StepRates& rates, int64_t optimizer_step);

  // Sum of the cross-entropy over targets without gradients, smoothing terms or teacher; `losses` (may be null) gets
  // one a row, `hidden` (may be null) the final hidden states, valid until the next call of the engine. With a sequence
  // tile these are the states of the batch's first tile only, which the rest of it has no part in.
  double Evaluate(const Batch& batch, std::vector<float>* losses, ConstMatrix* hidden = nullptr);
  // The hidden states alone.
  ConstMatrix Hidden(const Batch& batch);

  const Decoder& decoder() const { return *decoder_; }
  const EngineOptions& options() const { return options_; }
  Store& store() { return *store_; }

 private:
  struct Runnable {
    std::shared_ptr<PlannedTape> planned;
    std::unique_ptr<Executor> executor;
  };
  enum class Kind : uint8_t { kTrain, kTrainUnserved, kEvaluate, kHidden };
  bool tiled() const { return options_.sequence_tile > 0 && options_.sequence_tile < options_.max_tokens; }
  std::unique_ptr<PlannedTape> Record(int64_t tokens, Kind kind) const;
  // Its final hidden states by tile; empty without a teacher.
  std::vector<ValueId> RecordTeacher(Tape* tape, const DecoderInputs& inputs) const;
  void CountTiers(const TierPlans& plans);
  bool Fits(const TierPlans& plans) const;
  Tiers tiers() const { return {arena_.get(), host_.get(), disk_.get()}; }
  Runnable& Get(int64_t tokens, int64_t max_tokens, Kind kind);
  // Quantises the served weights where those that train have changed.
  void UpdateServed();
  void Execute(Runnable* runnable, RunScalars* scalars);
  double Train(const Batch& batch, RunScalars* scalars);
  // Pads the batch to the tape's shape, binds and runs.
  Runnable& RunBatch(const Batch& batch, Kind kind, RunScalars* scalars);
  double SumLosses(const Runnable& runnable, int64_t tokens, std::vector<float>* losses) const;

  const Decoder* decoder_;
  Store* store_;
  EngineOptions options_;
  int64_t arena_bytes_ = 0;
  int64_t lower_bound_bytes_ = 0;
  std::shared_ptr<PlannedTape> largest_;
  std::unique_ptr<Arena> arena_;
  int64_t host_bytes_ = 0;
  int64_t disk_bytes_ = 0;
  std::unique_ptr<Tier> host_;
  std::unique_ptr<Tier> disk_;
  absl::Status status_;
  std::map<std::pair<int64_t, Kind>, Runnable> tapes_;
  Runnable update_;
  Runnable quantize_;  // of the served weights; without a tape where there are none
  bool unserved_ = false;
  Batch padded_;
  int64_t hidden_rows_ = 0;  // of the last batch
};

// The tape shape that a micro-batch of this many tokens runs in.
int64_t BucketTokens(int64_t tokens, int64_t max_tokens);

}  // namespace thimble
