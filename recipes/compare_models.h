// Several models, formats or runs on the same rows: a table, JSON, and a page with quality against size.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "recipes/evaluate.h"

namespace thimble {

struct ComparedModel {
  std::string path;
  std::string name;    // the path's last part, with as many before it as tell it from the others
  std::string format;  // of most weights of linear layers: "bf16", "nf4"
  int64_t parameters = 0;
  int64_t file_bytes = 0;  // of the files with weights; of a run its base's and 4 a trained parameter of the adapter
  bool is_reference = false;
  Evaluation evaluation;  // without divergence where this is the reference

  double bits_per_weight() const { return 8.0 * static_cast<double>(file_bytes) / static_cast<double>(parameters); }
};

struct Comparison {
  std::string reference;  // its path
  std::vector<ComparedModel> models;
};

// Opens, evaluates and lets go one model after another; the reference (one of `paths` or another) stays in memory all
// the while. Progress goes to standard error. Errors name the model.
using OptionsOfModel = std::function<absl::StatusOr<EvaluationOptions>(const ModelSession& model)>;
absl::StatusOr<Comparison> CompareModels(const std::vector<std::string>& paths, const std::string& reference, bool best,
                                         const OptionsOfModel& options_of);

// reference, and models: path, format, parameters, file_bytes, bits_per_weight, is_reference and all keys of `thimble
// eval --json`.
nlohmann::ordered_json ComparisonJson(const Comparison& comparison);
// At most 80 columns.
std::string FormatComparison(const Comparison& comparison);
// One file that needs no network.
std::string ComparisonPage(const Comparison& comparison);

}  // namespace thimble
