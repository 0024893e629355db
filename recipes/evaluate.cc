#include "recipes/evaluate.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/evaluation_parts.h"
#include "recipes/recipe_options.h"
#include "recipes/work_progress.h"

namespace thimble {
namespace {

// The ids must mean the same, or a divergence would compare apples and pears.
absl::Status CheckSameVocabulary(const ModelSession& model, const ModelSession& reference) {
  const int64_t ours = model.decoder.config.vocab_size;
  const int64_t theirs = reference.decoder.config.vocab_size;
  if (ours != theirs) {
    return absl::InvalidArgumentError(absl::StrCat(reference.path, ": the reference has ", theirs, " tokens, ",
                                                   model.path, " has ", ours, "; expected the same vocabulary"));
  }
  const int64_t ids = std::max(model.tokenizer->vocab_size(), reference.tokenizer->vocab_size());
  for (int32_t id = 0; id < ids; ++id) {
    const std::string a(model.tokenizer->TokenText(id));
    const std::string b(reference.tokenizer->TokenText(id));
    if (a == b) continue;
    return absl::InvalidArgumentError(absl::StrCat(reference.path, ": token ", id, " of the reference is '", b,
                                                   "', that of ", model.path, " is '", a,
                                                   "'; expected the same vocabulary"));
  }
  return absl::OkStatus();
}

}  // namespace

EvaluationOptions EvaluationOptionsOf(const ModelSession& model) {
  EvaluationOptions options;
  options.data = ValidationDatasetOptionsOf(model.recipe);
  options.data.files.clear();
  options.chat_format = ChatFormatNameOf(model.recipe);
  options.loss_on = LossOnOf(model.recipe);
  return options;
}

namespace {

absl::Status EvaluateRows(ModelSession* model, ModelSession* reference, const EvaluationOptions& options,
                          Evaluation* evaluation) {
  int64_t max_position = model->decoder.config.max_position;
  if (reference != nullptr) {
    RETURN_IF_ERROR(CheckSameVocabulary(*model, *reference));
    max_position = std::min(max_position, reference->decoder.config.max_position);
  }
  ASSIGN_OR_RETURN(const EvaluationRows rows, ReadEvaluationRows(*model, options));
  ASSIGN_OR_RETURN(BatchStream stream, PackEvaluationRows(rows, options, max_position));
  evaluation->data_description = rows.data.description;
  if (rows.form != RowForm::kText) evaluation->chat_format = rows.encoder->format().description;
  evaluation->rows = stream.stats().rows_kept;
  evaluation->rows_cut = stream.stats().rows_cut;
  evaluation->rows_no_targets = stream.stats().rows_no_targets;
  const Stopwatch watch;
  RETURN_IF_ERROR(ScoreRows(model, reference, rows.slicings, &stream, evaluation));
  evaluation->seconds = watch.Seconds();
  // Every byte is scored where BOS stands before the first token.
  const ModelTokens& tokens = rows.encoder->tokens();
  if (rows.text_bytes > 0 && tokens.add_bos && tokens.bos_id >= 0 && evaluation->rows_no_targets == 0) {
    evaluation->bits_per_byte = evaluation->loss * static_cast<double>(evaluation->targets) / std::log(2.0) /
                                static_cast<double>(rows.text_bytes);
  }
  return options.exact_match ? MatchAnswers(model, *rows.encoder, options, evaluation) : absl::OkStatus();
}

}  // namespace

absl::StatusOr<Evaluation> EvaluateModel(ModelSession* model, ModelSession* reference,
                                         const EvaluationOptions& options) {
  Evaluation evaluation;
  if (!options.data.files.empty()) RETURN_IF_ERROR(EvaluateRows(model, reference, options, &evaluation));
  RETURN_IF_ERROR(ScoreTasks(model, options, &evaluation));
  return evaluation;
}

double Percentile(const std::vector<float>& sorted, double share) {
  CHECK(!sorted.empty());
  const auto rank = static_cast<int64_t>(std::ceil(share * static_cast<double>(sorted.size())));
  return sorted[std::clamp<int64_t>(rank - 1, 0, static_cast<int64_t>(sorted.size()) - 1)];
}

}  // namespace thimble
