// Training checkpoints in HDF5: trainable tensors, their moments, and where the run stands.
// Layout (docs of the file format: data/hdf5_file.cc): /tensors/<name> f32 [rows, cols], the optimiser's state
// /moments/<name>/exp_avg and so on (trainer/optimizer_state.h; f32 [rows, cols] or u8 [codes]), and scalars under
// /state and /identity.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/packing.h"
#include "trainer/store.h"

namespace thimble {

// Where a run stands, after a whole number of optimiser steps. All randomness (dropout, shuffles) is a function of
// seeds and these counters.
struct TrainState {
  int64_t step = 0;        // optimiser steps done
  int64_t micro_step = 0;  // micro-steps done: the dropout counter
  DataPosition position;   // of the training data
  int64_t tokens = 0;      // seen so far
  int64_t targets = 0;
  double seconds = 0;       // spent training, over all sittings
  double train_loss = 0;    // of the last step, nats per target
  double loss_before = -1;  // held-out loss at step 0, -1 when not evaluated
  double last_eval_loss = -1;
  double best_eval_loss = -1;
  int64_t best_step = -1;
  int64_t evaluations_without_gain = 0;
};

// What a checkpoint belongs to: a resume with another one is refused with the difference shown.
struct RunIdentity {
  std::string recipe;            // resolved, as text
  std::string base_fingerprint;  // of the base model's files; empty when trained from scratch
  std::string data_fingerprint;
  std::string compute;                 // "f32" or "bf16", as chosen when the run began
  std::string data_form = "messages";  // RowFormName of the rows that it learned from, for prompts to the model
};

absl::Status SaveCheckpoint(const std::string& path, const Store& store, const TrainState& state,
                            const RunIdentity& identity);

// The step with the lowest held-out loss so far, -1 without evaluations.
absl::StatusOr<int64_t> ReadBestStep(const std::string& path);

// The identity alone; reads (and checks) the file.
absl::StatusOr<RunIdentity> ReadCheckpointIdentity(const std::string& path);

// Fills the store's trainable tensors and moments. FailedPrecondition names what differs from `identity`; DataLoss when
// the file is damaged or lacks a tensor.
absl::StatusOr<TrainState> LoadCheckpoint(const std::string& path, const RunIdentity& identity, Store* store);
// Tensors only, without moments and without a check of the identity (which goes to `identity`, may be null): for
// evaluation and export.
absl::Status LoadCheckpointTensors(const std::string& path, Store* store, RunIdentity* identity = nullptr);

// checkpoints/step-00000120.h5 in a run folder.
std::string CheckpointPath(const std::string& run_folder, int64_t step);
// Steps of all checkpoints in a run folder, ascending.
std::vector<int64_t> ListCheckpoints(const std::string& run_folder);
// Removes all but the newest `keep_last` and `best_step` (-1: none), and what an interrupted write left behind.
void PruneCheckpoints(const std::string& run_folder, int64_t keep_last, int64_t best_step);

}  // namespace thimble
