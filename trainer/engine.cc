#include "trainer/engine.h"

#include <algorithm>
#include <cstring>

#include "ops/check.h"
#include "trainer/transfers.h"

namespace thimble {

int64_t BucketTokens(int64_t tokens, int64_t max_tokens) {
  // Sixteen shapes at most: few tapes, little padding.
  const int64_t grain = std::max<int64_t>(64, (max_tokens / 16 + 63) / 64 * 64);
  return std::min(max_tokens, std::max<int64_t>(1, (tokens + grain - 1) / grain) * grain);
}

Engine::Engine(const Decoder* decoder, Store* store, const EngineOptions& options)
    : decoder_(decoder), store_(store), options_(options) {
  CHECK_GT(options_.max_tokens, 0);
  largest_ = Record(options_.max_tokens, options_.train);
  CountTiers(largest_->plan);
  lower_bound_bytes_ = largest_->plan.device.lower_bound_bytes;
  if (options_.train) {
    CountTiers(Record(options_.max_tokens, false)->plan);
    update_.planned = std::make_unique<PlannedTape>(store_);
    RecordUpdate(&update_.planned->tape, options_.optimizer);
    update_.planned->plan = PlanTiers(update_.planned->tape, {});
    CountTiers(update_.planned->plan);
  }
}

void Engine::CountTiers(const TierPlans& plans) {
  arena_bytes_ = std::max(arena_bytes_, plans.device.peak_bytes);
  host_bytes_ = std::max(host_bytes_, plans.host.peak_bytes);
  disk_bytes_ = std::max(disk_bytes_, plans.disk.peak_bytes);
}

bool Engine::Fits(const TierPlans& plans) const {
  return plans.device.peak_bytes <= arena_bytes_ && plans.host.peak_bytes <= host_bytes_ &&
         plans.disk.peak_bytes <= disk_bytes_;
}

absl::Status Engine::Prepare() {
  if (arena_ != nullptr) return absl::OkStatus();
  if (disk_bytes_ > 0) {
    ASSIGN_OR_RETURN(disk_, MakeDiskTier(options_.spill_folder, disk_bytes_));
  }
  if (host_bytes_ > 0) host_ = MakeHostTier(host_bytes_);
  arena_ = std::make_unique<Arena>(arena_bytes_);
  return absl::OkStatus();
}

void Engine::Execute(Runnable* runnable, RunScalars* scalars) {
  if (status_.ok()) status_ = runnable->executor->Run(scalars);
}

std::unique_ptr<PlannedTape> Engine::Record(int64_t tokens, bool train) const {
  auto planned = std::make_unique<PlannedTape>(store_);
  Tape* tape = &planned->tape;
  planned->inputs = RecordInputs(tape, tokens);
  planned->hidden =
      RecordDecoder(tape, *decoder_, planned->inputs, {.dropout = train, .mlp_tile = options_.mlp_tile, .caches = {}});
  LinearCrossEntropyOptions loss = options_.loss;
  if (!train) {
    // Reported losses are plain cross-entropy.
    loss.label_smoothing = 0;
    loss.z_loss = 0;
  }
  planned->loss = RecordLinearCrossEntropy(tape, planned->hidden, tape->Persistent(decoder_->head),
                                           planned->inputs.targets, loss, train);
  std::vector<ValueId> pinned = {planned->loss.loss};
  if (train) {
    Backward(tape, options_.activations).Run();
  } else {
    pinned.push_back(planned->hidden);
  }
  FetchStreamedWeights(tape);
  planned->plan = PlanTiers(*tape, pinned);
  return planned;
}

Engine::Runnable& Engine::Get(int64_t tokens, bool train) {
  const absl::Status prepared = Prepare();
  CHECK(prepared.ok()) << prepared;
  Runnable& runnable = tapes_[{tokens, train}];
  if (runnable.planned == nullptr) {
    runnable.planned = Record(tokens, train);
    // Fits by construction for the largest shape; a smaller one whose placement came out larger runs as the largest.
    if (!Fits(runnable.planned->plan)) {
      CHECK_LT(tokens, options_.max_tokens);
      runnable.planned = Record(options_.max_tokens, train);
    }
    runnable.executor = std::make_unique<Executor>(&runnable.planned->tape, &runnable.planned->plan, tiers());
  }
  return runnable;
}

Engine::Runnable& Engine::RunBatch(const Batch& batch, bool train, RunScalars* scalars) {
  const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
  CHECK_LE(tokens, options_.max_tokens);
  Runnable& runnable = Get(BucketTokens(tokens, options_.max_tokens), train);
  const DecoderInputs& inputs = runnable.planned->inputs;
  const int64_t shape = runnable.planned->tape.value(inputs.ids).cols;
  padded_.Reset(options_.max_tokens);
  padded_ = batch;
  // Padding rows are samples of one token that see nothing, are seen by nothing and have no target.
  for (int64_t t = tokens; t < shape; ++t) {
    padded_.tokens.push_back(0);
    padded_.positions.push_back(0);
    padded_.starts.push_back(static_cast<int32_t>(t));
    padded_.targets.push_back(-100);
  }
  runnable.executor->Bind(inputs.ids, padded_.tokens.data());
  runnable.executor->Bind(inputs.positions, padded_.positions.data());
  runnable.executor->Bind(inputs.starts, padded_.starts.data());
  runnable.executor->Bind(inputs.targets, padded_.targets.data());
  Execute(&runnable, scalars);
  return runnable;
}

double Engine::TrainMicroStep(const Batch& batch, float inverse_targets, uint64_t dropout_counter) {
  CHECK(options_.train);
  RunScalars scalars;
  scalars.inverse_targets = inverse_targets;
  scalars.dropout_counter = dropout_counter;
  Runnable& runnable = RunBatch(batch, /*train=*/true, &scalars);
  const ConstMatrix loss = runnable.executor->Result(runnable.planned->loss.loss);
  double sum = 0;
  for (size_t t = 0; t < batch.tokens.size(); ++t) sum += loss(0, static_cast<int64_t>(t));
  return sum;
}

void Engine::ZeroGradients() {
  for (StoreId id : store_->Trainable()) {
    const Vector gradient = store_->vector(store_->entry(id).gradient);
    std::memset(gradient.data, 0, sizeof(float) * gradient.size);
  }
}

double Engine::Update(double learning_rate, int64_t optimizer_step) {
  const absl::Status prepared = Prepare();
  CHECK(prepared.ok()) << prepared;
  if (update_.executor == nullptr) {
    update_.executor = std::make_unique<Executor>(&update_.planned->tape, &update_.planned->plan, tiers());
  }
  RunScalars scalars;
  scalars.learning_rate = learning_rate;
  scalars.optimizer_step = optimizer_step;
  Execute(&update_, &scalars);
  return scalars.grad_norm;
}

double Engine::Evaluate(const Batch& batch, std::vector<float>* losses, ConstMatrix* hidden) {
  RunScalars scalars;
  Runnable& runnable = RunBatch(batch, /*train=*/false, &scalars);
  const ConstMatrix loss = runnable.executor->Result(runnable.planned->loss.loss);
  double sum = 0;
  for (size_t t = 0; t < batch.tokens.size(); ++t) sum += loss(0, static_cast<int64_t>(t));
  if (losses != nullptr) losses->assign(loss.data, loss.data + batch.tokens.size());
  if (hidden != nullptr) {
    *hidden = runnable.executor->Result(runnable.planned->hidden).Rows(0, static_cast<int64_t>(batch.tokens.size()));
  }
  return sum;
}

ConstMatrix Engine::Hidden(const Batch& batch) {
  RunScalars scalars;
  Runnable& runnable = RunBatch(batch, /*train=*/false, &scalars);
  return runnable.executor->Result(runnable.planned->hidden).Rows(0, static_cast<int64_t>(batch.tokens.size()));
}

}  // namespace thimble
