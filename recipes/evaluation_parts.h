// The parts of an evaluation, for evaluate.cc alone: rows, their slices, scores, answers, choices.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/packing.h"
#include "data/row_encoder.h"
#include "data/token_cache.h"
#include "recipes/evaluate.h"
#include "trainer/divergence.h"

namespace thimble {

// One way to cut the rows into slices.
struct Slicing {
  std::string by;                  // "file", "length" or a column
  std::vector<std::string> names;  // of its slices, in the order of the report
  std::vector<int32_t> slice;      // of each row, an index into names
};

// Rows of files, tokenised for a model.
struct EvaluationRows {
  RowForm form = RowForm::kAuto;
  std::unique_ptr<RowEncoder> encoder;
  TokenisedDataset data;
  int64_t text_bytes = 0;
  std::vector<Slicing> slicings;
};
absl::StatusOr<EvaluationRows> ReadEvaluationRows(const ModelSession& model, const EvaluationOptions& options);
absl::StatusOr<BatchStream> PackEvaluationRows(const EvaluationRows& rows, const EvaluationOptions& options,
                                               int64_t max_position);

// The file and the labels of each row, in the order of the tokenised rows.
struct RowOrigins {
  std::vector<int32_t> file;
  std::vector<std::vector<std::string>> labels;  // [column][row]
};
// By file where there are several, then as options.slice_by says. InvalidArgument for a column that no row has, or with
// more than 1000 values.
absl::StatusOr<std::vector<Slicing>> MakeSlicings(const EvaluationOptions& options, const RowOrigins& origins,
                                                  const TokenRows& rows);
// The names in slice_by that are columns.
std::vector<std::string> LabelColumns(const std::vector<std::string>& slice_by);

// Sums over the rows of each slice. Holds 4 bytes for each compared token and slicing.
class SliceSums {
 public:
  explicit SliceSums(const std::vector<Slicing>* slicings);
  // Tokens of a batch that is made of `pieces`: the losses [T] of model and (or empty) reference; divergence: after its
  // Add() of the batch, or null.
  void Add(const std::vector<Piece>& pieces, const Batch& batch, const std::vector<float>& losses,
           const std::vector<float>& reference_losses, const Divergence* divergence);
  // In the order of the slicings, without slices that got no token. Last: nothing is left.
  std::vector<SliceFigures> Take();

 private:
  struct Sums {
    int64_t rows = 0, tokens = 0, targets = 0, agreed = 0;
    double loss = 0, reference_loss = 0;
    std::vector<float> kl;
  };
  const std::vector<Slicing>* slicings_;
  std::vector<std::vector<Sums>> sums_;
  bool compared_ = false;
};
// Mean and sorted list of KL divergences.
void FinishDivergence(std::vector<float> kl, int64_t agreed, DivergenceFigures* figures);

// Fills loss, tokens, memory, divergence and slices. `reference` may be null.
absl::Status ScoreRows(ModelSession* model, ModelSession* reference, const std::vector<Slicing>& slicings,
                       BatchStream* stream, Evaluation* evaluation);

// Greedy answers against the expected ones. An answer that does not end by itself is wrong.
absl::Status MatchAnswers(ModelSession* model, const RowEncoder& encoder, const EvaluationOptions& options,
                          Evaluation* evaluation);

// Appends the figures of each of options.tasks to evaluation->tasks.
absl::Status ScoreTasks(ModelSession* model, const EvaluationOptions& options, Evaluation* evaluation);

}  // namespace thimble
