// Measures a model on rows of a file: loss, divergence from a reference model, exact answers.
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
  DatasetOptions data;
  std::string chat_format = "auto";  // of the rows; texts need none
  LossOn loss_on = LossOn::kResponses;
  bool eos = false;             // texts: the token that ends one is scored too
  int64_t context = 0;          // texts: windows of so many tokens; 0: whole rows
  int64_t batch_tokens = 2048;  // at a time; a longer row makes it longer
  bool exact_match = false;
  int64_t max_new_tokens = 256;  // of an answer
};
// What a run's recipe says of its data, or the defaults of a plain folder; without files.
EvaluationOptions EvaluationOptionsOf(const ModelSession& model);

struct DivergenceFigures {
  std::vector<float> kl;  // KL(reference || model) of every token, nats, ascending
  double mean_kl = 0;
  double top1_agreement = 0;  // share of tokens with the same most likely next token
  double reference_loss = 0;  // nats a target
};

struct Evaluation {
  std::string data_description;
  std::string chat_format;  // empty for texts
  int64_t rows = 0;         // evaluated
  int64_t rows_cut = 0;     // longer than the model's context
  int64_t rows_no_targets = 0;
  int64_t targets = 0;
  int64_t tokens = 0;
  double loss = 0;           // nats a target
  double bits_per_byte = 0;  // of texts that are scored whole; 0: not known
  double seconds = 0;        // without exact match
  ForwardMemory memory;
  bool compared = false;
  DivergenceFigures divergence;
  bool matched = false;
  int64_t match_rows = 0;
  int64_t match_correct = 0;
  int64_t match_too_long = 0;  // among match_rows: the prompt fills the model's context, counted as wrong
};

// `reference` may be null; it needs the model's vocabulary. Both are loaded. Progress goes to standard error.
// InvalidArgument: rows the format cannot express, no rows, no targets, texts longer than the context, two
// vocabularies.
absl::StatusOr<Evaluation> EvaluateModel(ModelSession* model, ModelSession* reference,
                                         const EvaluationOptions& options);

// Keys: see `thimble eval --help`.
nlohmann::ordered_json EvaluationJson(const Evaluation& evaluation);
std::string FormatEvaluation(const Evaluation& evaluation);

// The smallest value that at least `share` of the sorted values do not exceed.
double Percentile(const std::vector<float>& sorted, double share);

}  // namespace thimble
