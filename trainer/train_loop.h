// The training loop: steps of accumulated micro-batches, evaluation, checkpoints, early stopping, interruption.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/packing.h"
#include "trainer/checkpoint.h"
#include "trainer/engine.h"
#include "trainer/run_log.h"
#include "trainer/schedule.h"

namespace thimble {

struct TrainLoopOptions {
  double learning_rate = 2e-4;
  ScheduleOptions schedule;  // total_steps is the length of the run
  int64_t accumulation = 1;
  int64_t serve_after = 0;   // steps that train without the served weights of the decoder, where it has such
  int64_t eval_every = 0;    // 0: before the first and after the last step only
  int64_t eval_batches = 0;  // 0: all
  int64_t save_every = 0;    // 0: at the end and when interrupted only
  int64_t keep_last = 2;
  bool keep_best = true;
  int64_t early_stopping = 0;  // evaluations without gain, 0: never
};

struct TrainResult {
  TrainState state;
  bool interrupted = false;  // by a signal; the checkpoint is written
  bool stopped_early = false;
  double seconds = 0;         // of this sitting
  int64_t tokens = 0;         // of this sitting
  int64_t skipped_steps = 0;  // gradients were not finite
};

class TrainLoop {
 public:
  // All pointers outlive the loop; `eval` may be null. The run folder exists. `accumulation` is 1 where the engine
  // updates in backward.
  TrainLoop(Engine* engine, BatchStream* train, BatchStream* eval, const TrainLoopOptions& options,
            std::string run_folder, RunIdentity identity, RunLog* log);

  // Called at every evaluation with the step, for samples; may be empty.
  std::function<absl::Status(int64_t step)> on_evaluation;

  // From `state` (default: the beginning) to the end. Set `*stop` from a signal handler to stop after the step in
  // progress with a checkpoint.
  absl::StatusOr<TrainResult> Run(const TrainState& state, const std::atomic<bool>* stop);

  // Mean loss in nats per target over the evaluation stream.
  absl::StatusOr<double> Evaluate();

 private:
  absl::Status EvaluateAndRecord();
  absl::Status Step();
  absl::Status Save();
  // Whether too many evaluations went by without gain, before the last step.
  bool StoppedEarly() const;

  Engine* engine_;
  BatchStream* train_;
  BatchStream* eval_;
  TrainLoopOptions options_;
  std::string run_folder_;
  RunIdentity identity_;
  RunLog* log_;
  TrainState state_;
  TrainResult result_;
  std::vector<Batch> batches_;  // of a step; kept for their memory
  Batch eval_batch_;
  int64_t saved_step_ = -1;
  int64_t evaluated_step_ = -1;
  int64_t eval_targets_ = 0;  // of the last evaluation
};

}  // namespace thimble
