// Loss over rows, and the divergence from a reference beside it, for all rows and for slices of them.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/evaluation_parts.h"
#include "recipes/work_progress.h"
#include "trainer/divergence.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

const WeightView& HeadOf(const ModelSession& model) { return model.store.entry(model.decoder.EvaluatedHead()).view; }

// Loss over a stream, and the divergence from a reference beside it.
class Scorer {
 public:
  Scorer(ModelSession* model, ModelSession* reference, const std::vector<Slicing>& slicings, int64_t max_tokens)
      : model_(model),
        reference_(reference),
        max_tokens_(max_tokens),
        engine_(MakeEngine(model, max_tokens)),
        slices_(&slicings) {
    if (reference != nullptr) reference_engine_ = MakeEngine(reference, max_tokens);
  }

  absl::Status Run(BatchStream* stream, Evaluation* evaluation) {
    WorkProgress progress;
    Batch batch;
    const int64_t batches = stream->batches_per_epoch();
    for (int64_t i = 0; i < batches; ++i) {
      RETURN_IF_ERROR(stream->Next(&batch));
      ConstMatrix hidden;
      const Stopwatch watch;
      loss_ += engine_->Evaluate(batch, &losses_, &hidden);
      model_seconds_ += watch.Seconds();
      RETURN_IF_ERROR(engine_->status());
      targets_ += batch.num_targets;
      tokens_ += static_cast<int64_t>(batch.tokens.size());
      if (reference_ != nullptr) {
        Compare(batch, hidden);
        RETURN_IF_ERROR(reference_engine_->status());
      }
      slices_.Add(stream->PiecesAt(i), batch, losses_, reference_losses_,
                  reference_ == nullptr ? nullptr : &divergence_);
      progress.Show(absl::StrFormat("evaluated %d of %d tokens, loss %.4f", tokens_, stream->stats().tokens,
                                    loss_ / static_cast<double>(std::max<int64_t>(targets_, 1))));
    }
    return Finish(evaluation);
  }

 private:
  static std::unique_ptr<Engine> MakeEngine(ModelSession* model, int64_t max_tokens) {
    EngineOptions options;
    options.train = false;
    options.max_tokens = max_tokens;
    options.loss.compute = model->decoder.compute;
    return std::make_unique<Engine>(&model->decoder, &model->store, options);
  }

  void Compare(const Batch& batch, ConstMatrix hidden) {
    ConstMatrix reference_hidden;
    reference_loss_ += reference_engine_->Evaluate(batch, &reference_losses_, &reference_hidden);
    divergence_.Add(reference_hidden, HeadOf(*reference_), hidden, HeadOf(*model_));
  }

  ForwardMemory Memory() const {
    ForwardMemory memory;
    memory.Add(model_->store);
    memory.Add(*engine_);
    if (reference_ == nullptr) return memory;
    memory.Add(reference_->store);
    memory.Add(*reference_engine_);
    memory.planned += Divergence::ScratchBytes(max_tokens_, HeadOf(*reference_), HeadOf(*model_));
    memory.measured += divergence_.held_bytes();
    return memory;
  }

  absl::Status Finish(Evaluation* evaluation) {
    evaluation->memory = Memory();
    evaluation->scored = true;
    evaluation->model_seconds = model_seconds_;
    evaluation->slices = slices_.Take();
    evaluation->targets = targets_;
    evaluation->tokens = tokens_;
    if (targets_ == 0) return absl::InvalidArgumentError("no token to score: each window holds the start of a text");
    evaluation->loss = loss_ / static_cast<double>(targets_);
    if (!std::isfinite(evaluation->loss)) {
      return absl::InvalidArgumentError(
          absl::StrCat(model_->path, ": the loss is not a finite number; the weights are damaged or too large"));
    }
    if (reference_ == nullptr) return absl::OkStatus();
    evaluation->compared = true;
    DivergenceFigures& figures = evaluation->divergence;
    figures.reference_loss = reference_loss_ / static_cast<double>(targets_);
    if (!std::isfinite(figures.reference_loss)) {
      return absl::InvalidArgumentError(
          absl::StrCat(reference_->path, ": the loss is not a finite number; the weights are damaged or too large"));
    }
    const int64_t agreed = divergence_.agreed();
    FinishDivergence(divergence_.TakeKL(), agreed, &figures);
    return absl::OkStatus();
  }

  ModelSession* model_;
  ModelSession* reference_;
  int64_t max_tokens_;
  std::unique_ptr<Engine> engine_;
  std::unique_ptr<Engine> reference_engine_;
  double loss_ = 0;
  double reference_loss_ = 0;
  int64_t targets_ = 0;
  int64_t tokens_ = 0;
  double model_seconds_ = 0;
  std::vector<float> losses_, reference_losses_;  // of the last batch
  SliceSums slices_;
  Divergence divergence_;
};

}  // namespace

absl::Status ScoreRows(ModelSession* model, ModelSession* reference, const std::vector<Slicing>& slicings,
                       BatchStream* stream, Evaluation* evaluation) {
  return Scorer(model, reference, slicings, stream->max_batch_tokens()).Run(stream, evaluation);
}

}  // namespace thimble
