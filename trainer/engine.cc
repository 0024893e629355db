#include "trainer/engine.h"

#include <algorithm>
#include <cstring>

#include "ops/check.h"
#include "trainer/idle_values.h"
#include "trainer/served_weights.h"
#include "trainer/transfers.h"
#include "trainer/update_in_backward.h"

namespace thimble {

int64_t BucketTokens(int64_t tokens, int64_t max_tokens) {
  // Sixteen shapes at most: few tapes, little padding.
  const int64_t grain = std::max<int64_t>(64, (max_tokens / 16 + 63) / 64 * 64);
  return std::min(max_tokens, std::max<int64_t>(1, (tokens + grain - 1) / grain) * grain);
}

Engine::Engine(const Decoder* decoder, Store* store, const EngineOptions& options)
    : decoder_(decoder), store_(store), options_(options) {
  CHECK_GT(options_.max_tokens, 0);
  largest_ = Record(options_.max_tokens, options_.train ? Kind::kTrain : Kind::kEvaluate);
  CountTiers(largest_->plan);
  lower_bound_bytes_ = largest_->plan.device.lower_bound_bytes;
  if (tiled()) CountTiers(Record(options_.sequence_tile, Kind::kHidden)->plan);
  if (options_.train) {
    CountTiers(Record(options_.max_tokens, Kind::kEvaluate)->plan);
  }
  if (options_.train && options_.trains_unserved) {
    CountTiers(Record(options_.max_tokens, Kind::kTrainUnserved)->plan);
  }
  if (HasServed(*decoder_)) {
    quantize_.planned = std::make_shared<PlannedTape>(store_);
    RecordQuantizeServed(*decoder_, &quantize_.planned->tape);
    FetchStreamedWeights(&quantize_.planned->tape);
    quantize_.planned->plan = PlanTiers(quantize_.planned->tape, {});
    CountTiers(quantize_.planned->plan);
  }
  if (options_.train && !updates_in_backward()) {
    update_.planned = options_.update;
    if (update_.planned == nullptr) {
      update_.planned = std::make_shared<PlannedTape>(store_);
      RecordUpdate(&update_.planned->tape, options_.optimizer);
      update_.planned->plan = PlanTiers(update_.planned->tape, {});
    }
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
  if (host_bytes_ > 0) {
    ASSIGN_OR_RETURN(host_, MakeHostTier(host_bytes_));
  }
  const int64_t state_bytes = options_.train ? store_->state_bytes() : 0;
  if (state_bytes > 0 && store_->state_tier() == nullptr) {
    ASSIGN_OR_RETURN(std::unique_ptr<Tier> tier, store_->state_on_host()
                                                     ? MakeHostTier(state_bytes)
                                                     : MakeDiskTier(options_.spill_folder, state_bytes));
    store_->SetStateTier(std::move(tier));
  }
  BindServed(*decoder_, store_);
  auto arena = std::make_unique<Arena>(arena_bytes_);
  if (!arena->ok()) return NoAddressSpace("the arena", arena_bytes_);
  arena_ = std::move(arena);
  return absl::OkStatus();
}

void Engine::Execute(Runnable* runnable, RunScalars* scalars) {
  if (status_.ok()) status_ = runnable->executor->Run(scalars);
}

void Engine::UpdateServed() {
  if (quantize_.planned == nullptr || !store_->served_is_old()) return;
  if (quantize_.executor == nullptr) {
    quantize_.executor = std::make_unique<Executor>(&quantize_.planned->tape, &quantize_.planned->plan, tiers());
  }
  RunScalars scalars;
  Execute(&quantize_, &scalars);
  store_->SetServedIsOld(false);
}

void Engine::TrainUnserved(bool unserved) {
  CHECK(!unserved || options_.trains_unserved);
  unserved_ = unserved;
}

// Before the student's layers: nothing of it waits meanwhile but the final states.
std::vector<ValueId> Engine::RecordTeacher(Tape* tape, const DecoderInputs& inputs) const {
  const Decoder* teacher = decoder_->teacher.get();
  if (teacher == nullptr) return {};
  std::vector<ValueId> x = RecordLayers(
      tape, *teacher, inputs,
      {.sequence_tile = options_.sequence_tile, .mlp_tile = options_.mlp_tile, .apart = true, .caches = {}});
  for (size_t t = x.size(); t-- > 0;) x[t] = RecordFinalNorm(tape, *teacher, x[t]);
  return x;
}

std::unique_ptr<PlannedTape> Engine::Record(int64_t tokens, Kind kind) const {
  const bool train = kind == Kind::kTrain || kind == Kind::kTrainUnserved;
  const bool served = kind != Kind::kTrainUnserved;
  const int64_t sequence_tile = kind == Kind::kHidden ? 0 : options_.sequence_tile;
  auto planned = std::make_unique<PlannedTape>(store_);
  Tape* tape = &planned->tape;
  planned->inputs = RecordInputs(tape, tokens);
  const std::vector<ValueId> taught = train ? RecordTeacher(tape, planned->inputs) : std::vector<ValueId>();
  const std::vector<ValueId> x = RecordLayers(tape, *decoder_, planned->inputs,
                                              {.dropout = train,
                                               .sequence_tile = sequence_tile,
                                               .mlp_tile = options_.mlp_tile,
                                               .served = served,
                                               .caches = {}});
  LinearCrossEntropyOptions loss = options_.loss;
  if (!train) {
    // Reported losses are plain cross-entropy.
    loss.label_smoothing = 0;
    loss.z_loss = 0;
  }
  const std::vector<TokenTile> tiles = TokenTiles(tokens, sequence_tile);
  const bool served_head = served && decoder_->served_head >= 0;
  const ValueId trained_head = tape->Persistent(decoder_->head);
  const ValueId head = served_head ? tape->Persistent(decoder_->served_head) : trained_head;
  planned->losses.resize(tiles.size());
  // Last tile first, as the layers.
  for (size_t t = tiles.size(); t-- > 0;) {
    planned->hidden = RecordFinalNorm(tape, *decoder_, x[t]);
    if (!taught.empty()) {
      const DistillationValues values = {
          planned->hidden,         head,        taught[t], tape->Persistent(decoder_->teacher->head),
          planned->inputs.targets, trained_head};
      planned->losses[t] = RecordLinearDistillation(tape, values, tiles[t].begin, options_.distillation);
      continue;
    }
    planned->losses[t] = RecordLinearCrossEntropy(tape, planned->hidden, head, planned->inputs.targets, tiles[t].begin,
                                                  loss, train, trained_head)
                             .loss;
  }
  std::vector<ValueId> pinned = planned->losses;
  if (!train && (kind == Kind::kHidden || !tiled())) pinned.push_back(planned->hidden);
  const bool moves = options_.idle_tier != Placement::kActivation;
  if (train) Backward(tape, moves ? options_.activations.WithoutOffload() : options_.activations).Run();
  if (moves) MoveIdleValues(options_.activations, options_.idle_tier, pinned, tape);
  FetchStreamedWeights(tape);
  if (train && updates_in_backward()) RecordUpdatesInBackward(tape, options_.optimizer);
  planned->plan = PlanTiers(*tape, pinned);
  return planned;
}

Engine::Runnable& Engine::Get(int64_t tokens, int64_t max_tokens, Kind kind) {
  const absl::Status prepared = Prepare();
  CHECK(prepared.ok()) << prepared;
  Runnable& runnable = tapes_[{tokens, kind}];
  if (runnable.planned == nullptr) {
    // Tapes of long sequences take room: that of the plan is the one that runs.
    const Kind largest = options_.train ? Kind::kTrain : Kind::kEvaluate;
    const bool planned = tokens == options_.max_tokens && kind == largest;
    runnable.planned = planned ? largest_ : Record(tokens, kind);
    // Fits by construction for the largest shape; a smaller one whose placement came out larger runs as the largest.
    if (!Fits(runnable.planned->plan)) {
      CHECK_LT(tokens, max_tokens);
      runnable.planned = Record(max_tokens, kind);
    }
    runnable.executor = std::make_unique<Executor>(&runnable.planned->tape, &runnable.planned->plan, tiers());
  }
  return runnable;
}

Engine::Runnable& Engine::RunBatch(const Batch& batch, Kind kind, RunScalars* scalars) {
  const bool prefix = tiled() && kind == Kind::kHidden;
  const int64_t max_tokens = prefix ? options_.sequence_tile : options_.max_tokens;
  const int64_t given = static_cast<int64_t>(batch.tokens.size());
  CHECK_LE(given, options_.max_tokens);
  const int64_t tokens = std::min(given, max_tokens);
  hidden_rows_ = tokens;
  Runnable& runnable = Get(BucketTokens(tokens, max_tokens), max_tokens, kind);
  const DecoderInputs& inputs = runnable.planned->inputs;
  const int64_t shape = runnable.planned->tape.value(inputs.ids).cols;
  padded_.Reset(options_.max_tokens);
  padded_ = batch;
  for (std::vector<int32_t>* rows : {&padded_.tokens, &padded_.positions, &padded_.starts, &padded_.targets}) {
    rows->resize(tokens);
  }
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
  if (kind != Kind::kTrainUnserved) UpdateServed();
  Execute(&runnable, scalars);
  return runnable;
}

double Engine::TrainMicroStep(const Batch& batch, float inverse_targets, uint64_t dropout_counter) {
  CHECK(options_.train && !updates_in_backward());
  RunScalars scalars;
  scalars.inverse_targets = inverse_targets;
  scalars.dropout_counter = dropout_counter;
  return Train(batch, &scalars);
}

double Engine::TrainAndUpdate(const Batch& batch, float inverse_targets, uint64_t dropout_counter,
                              const StepRates& rates, int64_t optimizer_step, double* grad_norm) {
  CHECK(options_.train && updates_in_backward());
  RunScalars scalars;
  scalars.inverse_targets = inverse_targets;
  scalars.dropout_counter = dropout_counter;
  scalars.learning_rate = rates.learning_rate;
  scalars.decay_factor = rates.decay_factor;
  scalars.optimizer_step = optimizer_step;
  const double loss = Train(batch, &scalars);
  *grad_norm = scalars.grad_norm;
  return loss;
}

double Engine::Train(const Batch& batch, RunScalars* scalars) {
  const Runnable& runnable = RunBatch(batch, unserved_ ? Kind::kTrainUnserved : Kind::kTrain, scalars);
  if (updates_in_backward()) store_->SetServedIsOld(true);
  return SumLosses(runnable, static_cast<int64_t>(batch.tokens.size()), nullptr);
}

void Engine::ZeroGradients() {
  if (updates_in_backward()) return;
  for (StoreId id : store_->Trainable()) {
    const Vector gradient = store_->vector(store_->entry(id).gradient);
    std::memset(gradient.data, 0, sizeof(float) * gradient.size);
  }
}

double Engine::Update(const StepRates& rates, int64_t optimizer_step) {
  const absl::Status prepared = Prepare();
  CHECK(prepared.ok()) << prepared;
  if (update_.executor == nullptr) {
    update_.executor = std::make_unique<Executor>(&update_.planned->tape, &update_.planned->plan, tiers());
  }
  RunScalars scalars;
  scalars.learning_rate = rates.learning_rate;
  scalars.decay_factor = rates.decay_factor;
  scalars.optimizer_step = optimizer_step;
  Execute(&update_, &scalars);
  store_->SetServedIsOld(true);
  return scalars.grad_norm;
}

double Engine::SumLosses(const Runnable& runnable, int64_t tokens, std::vector<float>* losses) const {
  double sum = 0;
  if (losses != nullptr) losses->clear();
  for (ValueId tile : runnable.planned->losses) {
    const ConstMatrix loss = runnable.executor->Result(tile);
    const int64_t count = std::min(loss.cols, tokens);
    for (int64_t t = 0; t < count; ++t) sum += loss(0, t);
    if (losses != nullptr) losses->insert(losses->end(), loss.data, loss.data + count);
    tokens -= count;
  }
  return sum;
}

double Engine::Evaluate(const Batch& batch, std::vector<float>* losses, ConstMatrix* hidden) {
  RunScalars scalars;
  const Runnable& runnable = RunBatch(batch, Kind::kEvaluate, &scalars);
  const int64_t tokens = static_cast<int64_t>(batch.tokens.size());
  const double sum = SumLosses(runnable, tokens, losses);
  if (hidden != nullptr && tiled()) *hidden = Hidden(batch);
  if (hidden != nullptr && !tiled()) *hidden = runnable.executor->Result(runnable.planned->hidden).Rows(0, tokens);
  return sum;
}

ConstMatrix Engine::Hidden(const Batch& batch) {
  RunScalars scalars;
  const Runnable& runnable = RunBatch(batch, tiled() ? Kind::kHidden : Kind::kEvaluate, &scalars);
  return runnable.executor->Result(runnable.planned->hidden).Rows(0, hidden_rows_);
}

}  // namespace thimble
