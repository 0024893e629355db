// Measures a model on rows of files: loss, divergence from a reference model, exact answers, multiple choice.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/dataset.h"
#include "data/row_encoder.h"
#include "nlohmann/json.hpp"
#include "recipes/forward_memory.h"
#include "recipes/session.h"

namespace thimble {

struct EvaluationOptions {
  DatasetOptions data;               // no files: nothing but tasks
  std::string chat_format = "auto";  // of the rows; texts need none
  LossOn loss_on = LossOn::kResponses;
  bool eos = false;             // texts: the token that ends one is scored too
  int64_t context = 0;          // texts: windows of so many tokens; 0: whole rows
  int64_t batch_tokens = 2048;  // at a time; a longer row makes it longer
  bool exact_match = false;
  int64_t max_new_tokens = 256;  // of an answer
  // Figures apart for slices of the rows: "file", "length" or a column. Of several files always.
  std::vector<std::string> slice_by;
  std::vector<int64_t> length_edges = {64, 256, 1024, 4096};  // most tokens of a row in each bucket but the last
  std::vector<std::string> tasks;                             // multiple choice, see data/choice_rows.h
};
// What a run's recipe says of its data, or the defaults of a plain folder; without files.
EvaluationOptions EvaluationOptionsOf(const ModelSession& model);

struct DivergenceFigures {
  std::vector<float> kl;  // KL(reference || model) of every token, nats, ascending
  double mean_kl = 0;
  double top1_agreement = 0;  // share of tokens with the same most likely next token
  double reference_loss = 0;  // nats a target
};

struct SliceFigures {
  std::string by, name;
  int64_t rows = 0, targets = 0, tokens = 0;
  double loss = 0;  // nats a target; 0 without targets
  bool compared = false;
  DivergenceFigures divergence;
};

struct TaskFigures {
  std::string file;
  int64_t questions = 0;
  int64_t correct = 0;       // by the likelihood of a choice
  int64_t correct_norm = 0;  // by that divided by the choice's characters
  int64_t cut = 0;           // questions longer than the model's context
  double seconds = 0;
};

struct Evaluation {
  bool scored = false;  // rows, not tasks alone
  std::string data_description;
  std::string chat_format;  // empty for texts
  int64_t rows = 0;         // evaluated
  int64_t rows_cut = 0;     // longer than the model's context
  int64_t rows_no_targets = 0;
  int64_t targets = 0;
  int64_t tokens = 0;
  double loss = 0;           // nats a target
  double bits_per_byte = 0;  // of texts that are scored whole; 0: not known
  double seconds = 0;        // without exact match and tasks
  double model_seconds = 0;  // of the model alone, without reference and comparison
  ForwardMemory memory;
  bool compared = false;
  DivergenceFigures divergence;
  std::vector<SliceFigures> slices;
  bool matched = false;
  int64_t match_rows = 0;
  int64_t match_correct = 0;
  int64_t match_too_long = 0;  // among match_rows: the prompt fills the model's context, counted as wrong
  std::vector<TaskFigures> tasks;
};

// `reference` may be null; it needs the model's vocabulary. Both are loaded. Progress goes to standard error.
// InvalidArgument: rows the format cannot express, no rows, no targets, texts longer than the context, two
// vocabularies.
absl::StatusOr<Evaluation> EvaluateModel(ModelSession* model, ModelSession* reference,
                                         const EvaluationOptions& options);

// Keys: see `thimble eval --help`.
nlohmann::ordered_json EvaluationJson(const Evaluation& evaluation);
std::string FormatEvaluation(const Evaluation& evaluation);
// kl_mean, kl_median, kl_p90, kl_p95, kl_p99, kl_p99_9, kl_max, top1_agreement, reference_loss, reference_perplexity.
void AddDivergenceJson(const DivergenceFigures& figures, nlohmann::ordered_json* json);

// The smallest value that at least `share` of the sorted values do not exceed.
double Percentile(const std::vector<float>& sorted, double share);

}  // namespace thimble
