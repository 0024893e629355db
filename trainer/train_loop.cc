#include "trainer/train_loop.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "ops/check.h"
#include "trainer/process_memory.h"

namespace thimble {
namespace {

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

}  // namespace

TrainLoop::TrainLoop(Engine* engine, BatchStream* train, BatchStream* eval, const TrainLoopOptions& options,
                     std::string run_folder, RunIdentity identity, RunLog* log)
    : engine_(engine),
      train_(train),
      eval_(eval),
      options_(options),
      run_folder_(std::move(run_folder)),
      identity_(std::move(identity)),
      log_(log) {}

absl::StatusOr<double> TrainLoop::Evaluate() {
  RETURN_IF_ERROR(eval_->Seek({}));
  int64_t batches = eval_->batches_per_epoch();
  if (options_.eval_batches > 0) batches = std::min(batches, options_.eval_batches);
  double loss = 0;
  int64_t targets = 0;
  Batch& batch = eval_batch_;
  for (int64_t i = 0; i < batches; ++i) {
    RETURN_IF_ERROR(eval_->Next(&batch));
    loss += engine_->Evaluate(batch, nullptr);
    RETURN_IF_ERROR(engine_->status());
    targets += batch.num_targets;
  }
  eval_targets_ = targets;
  return targets == 0 ? 0.0 : loss / static_cast<double>(targets);
}

absl::Status TrainLoop::EvaluateAndRecord() {
  if (evaluated_step_ == state_.step) return absl::OkStatus();
  evaluated_step_ = state_.step;
  if (eval_ != nullptr) {
    const double begin = Now();
    ASSIGN_OR_RETURN(const double loss, Evaluate());
    if (state_.step == 0) state_.loss_before = loss;
    state_.last_eval_loss = loss;
    const bool best = std::isfinite(loss) && (state_.best_step < 0 || loss < state_.best_eval_loss);
    if (best) {
      state_.best_eval_loss = loss;
      state_.best_step = state_.step;
      state_.evaluations_without_gain = 0;
    } else {
      ++state_.evaluations_without_gain;
    }
    EvalMetrics metrics;
    metrics.step = state_.step;
    metrics.loss = loss;
    metrics.targets = eval_targets_;
    metrics.seconds = Now() - begin;
    metrics.best = best;
    RETURN_IF_ERROR(log_->Eval(metrics));
  }
  if (on_evaluation) RETURN_IF_ERROR(on_evaluation(state_.step));
  return absl::OkStatus();
}

absl::Status TrainLoop::Step() {
  const double begin = Now();
  int64_t targets = 0;
  ASSIGN_OR_RETURN(const int64_t count, train_->NextStep(options_.accumulation, &batches_, &targets));
  engine_->ZeroGradients();
  engine_->TrainUnserved(state_.step < options_.serve_after);
  double loss = 0;
  int64_t tokens = 0;
  // One divisor for the whole accumulated batch: never a mean of means.
  const float inverse = targets > 0 ? static_cast<float>(1.0 / static_cast<double>(targets)) : 0.0f;
  const StepRates rates(options_.learning_rate * ScheduleFactor(options_.schedule, state_.step),
                        DecayFactor(options_.schedule, state_.step));
  // Without a target there is nothing to learn: not even the moments may move the weights.
  const bool learns = targets > 0;
  const bool at_once = engine_->updates_in_backward();
  double norm = 0;
  for (const Batch& batch : absl::MakeConstSpan(batches_.data(), static_cast<size_t>(count))) {
    const auto counter = static_cast<uint64_t>(state_.micro_step);
    if (!at_once) loss += engine_->TrainMicroStep(batch, inverse, counter);
    if (at_once && learns) loss += engine_->TrainAndUpdate(batch, inverse, counter, rates, state_.step + 1, &norm);
    RETURN_IF_ERROR(engine_->status());
    tokens += static_cast<int64_t>(batch.tokens.size());
    ++state_.micro_step;
  }
  loss = learns ? loss / static_cast<double>(targets) : 0;
  if (!at_once && learns) {
    norm = engine_->Update(rates, state_.step + 1);
    RETURN_IF_ERROR(engine_->status());
  }
  if (!std::isfinite(norm)) ++result_.skipped_steps;
  ++state_.step;
  state_.tokens += tokens;
  state_.targets += targets;
  state_.position = train_->position();
  const double seconds = Now() - begin;
  state_.seconds += seconds;
  result_.seconds += seconds;
  result_.tokens += tokens;
  state_.train_loss = loss;

  if (targets == 0) log_->Note(absl::StrCat("step ", state_.step, ": no targets, loss 0 and no update"));
  if (!std::isfinite(norm)) log_->Note(absl::StrCat("step ", state_.step, ": gradient not finite, update skipped"));
  StepMetrics metrics;
  metrics.step = state_.step;
  metrics.epoch = static_cast<double>(state_.position.epoch) +
                  static_cast<double>(state_.position.index) / static_cast<double>(train_->batches_per_epoch());
  metrics.loss = loss;
  metrics.learning_rate = rates.learning_rate;
  metrics.grad_norm = norm;
  metrics.tokens = tokens;
  metrics.targets = targets;
  metrics.seconds = seconds;
  metrics.device_bytes = engine_->arena_high_water_bytes();
  metrics.process_bytes = PeakResidentBytes();
  return log_->Step(metrics);
}

absl::Status TrainLoop::Save() {
  if (saved_step_ == state_.step) return absl::OkStatus();
  // The metrics of a step are never behind its checkpoint, not even after a power cut.
  RETURN_IF_ERROR(log_->Sync());
  RETURN_IF_ERROR(SaveCheckpoint(CheckpointPath(run_folder_, state_.step), engine_->store(), state_, identity_));
  saved_step_ = state_.step;
  PruneCheckpoints(run_folder_, options_.keep_last, options_.keep_best ? state_.best_step : -1);
  return absl::OkStatus();
}

bool TrainLoop::StoppedEarly() const {
  return options_.early_stopping > 0 && state_.evaluations_without_gain >= options_.early_stopping &&
         state_.step < options_.schedule.total_steps;
}

absl::StatusOr<TrainResult> TrainLoop::Run(const TrainState& state, const std::atomic<bool>* stop) {
  state_ = state;
  result_ = {};
  saved_step_ = state.step > 0 ? state.step : -1;
  RETURN_IF_ERROR(train_->Seek(state_.position));
  const int64_t total = options_.schedule.total_steps;
  const auto interrupted = [stop] { return stop != nullptr && stop->load(); };
  if (state_.step == 0 && !interrupted()) RETURN_IF_ERROR(EvaluateAndRecord());
  // A resumed run may have stopped early already.
  while (state_.step < total && !StoppedEarly() && !interrupted()) {
    RETURN_IF_ERROR(Step());
    const bool last = state_.step == total;
    const bool evaluate = last || (options_.eval_every > 0 && state_.step % options_.eval_every == 0);
    if (evaluate) RETURN_IF_ERROR(EvaluateAndRecord());
    const bool new_best = options_.keep_best && evaluate && eval_ != nullptr && state_.best_step == state_.step;
    const bool save = options_.save_every > 0 && state_.step % options_.save_every == 0;
    if (last || save || new_best || StoppedEarly()) RETURN_IF_ERROR(Save());
  }
  result_.interrupted = interrupted();
  result_.stopped_early = StoppedEarly();
  if (result_.interrupted && state_.step > 0) RETURN_IF_ERROR(Save());
  result_.state = state_;
  return result_;
}

}  // namespace thimble
