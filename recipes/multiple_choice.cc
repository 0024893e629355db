// Multiple choice: the choice with the highest likelihood after the context, plain and by character.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/choice_rows.h"
#include "ops/check.h"
#include "recipes/evaluation_parts.h"
#include "recipes/work_progress.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

// One row for each choice of each question.
absl::StatusOr<std::shared_ptr<TokenRows>> EncodeTask(const ModelSession& model,
                                                      const std::vector<ChoiceRow>& questions, const std::string& file,
                                                      TaskFigures* task) {
  auto rows = std::make_shared<TokenRows>();
  for (const ChoiceRow& question : questions) {
    bool any_cut = false;
    for (const std::string& choice : question.choices) {
      bool cut = false;
      absl::StatusOr<EncodedRow> row = EncodeChoice(*model.tokenizer, model.tokens, question.context, choice,
                                                    model.decoder.config.max_position, &cut);
      if (!row.ok()) {
        return absl::InvalidArgumentError(
            absl::StrCat(file, ":", question.line, ": ", std::string(row.status().message())));
      }
      rows->Append(*row);
      any_cut |= cut;
    }
    task->cut += any_cut ? 1 : 0;
  }
  return rows;
}

absl::StatusOr<std::vector<double>> RowLosses(ModelSession* model, std::shared_ptr<const TokenRows> rows,
                                              int64_t batch_tokens, const std::string& file, ForwardMemory* memory) {
  PackingOptions packing;
  packing.shuffle = false;
  packing.seq_len = std::max<int64_t>(batch_tokens, 2);
  for (int64_t i = 0; i < rows->size(); ++i) packing.seq_len = std::max(packing.seq_len, rows->length(i));
  std::vector<double> sums(static_cast<size_t>(rows->size()), 0.0);
  ASSIGN_OR_RETURN(BatchStream stream, BatchStream::Make(std::move(rows), packing));
  EngineOptions options;
  options.train = false;
  options.max_tokens = stream.max_batch_tokens();
  options.loss.compute = model->decoder.compute;
  Engine engine(&model->decoder, &model->store, options);
  WorkProgress progress;
  Batch batch;
  std::vector<float> losses;
  const int64_t batches = stream.batches_per_epoch();
  for (int64_t i = 0; i < batches; ++i) {
    RETURN_IF_ERROR(stream.Next(&batch));
    engine.Evaluate(batch, &losses);
    RETURN_IF_ERROR(engine.status());
    int64_t t = 0;
    for (const Piece& piece : stream.PiecesAt(i)) {
      for (const int64_t end = t + piece.count; t < end; ++t) sums[piece.row] += losses[t];
    }
    progress.Show(absl::StrFormat("%s: %d of %d batches", file, i + 1, batches));
  }
  memory->Add(model->store);
  memory->Add(engine);
  return sums;
}

absl::Status ScoreTask(ModelSession* model, const std::string& file, int64_t batch_tokens, Evaluation* evaluation) {
  TaskFigures task;
  task.file = file;
  const Stopwatch watch;
  ASSIGN_OR_RETURN(const std::vector<ChoiceRow> questions, ReadChoiceRows(file));
  ASSIGN_OR_RETURN(std::shared_ptr<TokenRows> rows, EncodeTask(*model, questions, file, &task));
  ForwardMemory memory;
  ASSIGN_OR_RETURN(const std::vector<double> losses, RowLosses(model, std::move(rows), batch_tokens, file, &memory));
  evaluation->memory.Max(memory);
  size_t row = 0;
  for (const ChoiceRow& question : questions) {
    size_t best = 0, best_by_character = 0;
    double least = 0, least_by_character = 0;
    for (size_t c = 0; c < question.choices.size(); ++c, ++row) {
      if (!std::isfinite(losses[row])) {
        return absl::InvalidArgumentError(
            absl::StrCat(model->path, ": a likelihood is not a finite number; the weights are damaged or too large"));
      }
      const double by_character = losses[row] / static_cast<double>(CountCharacters(question.choices[c]));
      // The first of equal ones.
      if (c == 0 || losses[row] < least) {
        best = c;
        least = losses[row];
      }
      if (c == 0 || by_character < least_by_character) {
        best_by_character = c;
        least_by_character = by_character;
      }
    }
    task.correct += static_cast<int64_t>(best) == question.answer ? 1 : 0;
    task.correct_norm += static_cast<int64_t>(best_by_character) == question.answer ? 1 : 0;
  }
  task.questions = static_cast<int64_t>(questions.size());
  task.seconds = watch.Seconds();
  evaluation->tasks.push_back(std::move(task));
  return absl::OkStatus();
}

}  // namespace

absl::Status ScoreTasks(ModelSession* model, const EvaluationOptions& options, Evaluation* evaluation) {
  for (const std::string& file : options.tasks) {
    RETURN_IF_ERROR(ScoreTask(model, file, options.batch_tokens, evaluation));
  }
  return absl::OkStatus();
}

}  // namespace thimble
