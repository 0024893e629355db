#include "recipes/compare_models.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <map>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "recipes/session.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

int64_t BytesOfWeights(const ModelSession& model) {
  std::error_code error;
  int64_t bytes = 0;
  if (model.base != nullptr) {
    const std::string path = model.base->path();
    if (!fs::is_directory(path, error)) return static_cast<int64_t>(fs::file_size(path, error));
    for (const auto& entry : fs::directory_iterator(path, error)) {
      if (entry.path().extension() == ".safetensors") bytes += static_cast<int64_t>(entry.file_size(error));
    }
  }
  for (StoreId id = 0; id < static_cast<StoreId>(model.store.size()); ++id) {
    const StoreEntry& entry = model.store.entry(id);
    const bool adapter = entry.name.find(".lora_") != std::string::npos;
    if (entry.category == Category::kParameters && (adapter || model.base == nullptr)) {
      bytes += 4 * entry.rows * entry.cols;
    }
  }
  return bytes;
}

std::string FormatOf(const ModelSession& model) {
  std::map<std::string, int64_t> weights;
  for (const LayerWeights& layer : model.decoder.layers) {
    for (const LinearWeights* linear : layer.Linears()) {
      const StoreEntry& entry = model.store.entry(linear->weight);
      weights[std::string(InfoOf(entry.view.format).name)] += entry.rows * entry.cols;
    }
  }
  const auto most = std::max_element(weights.begin(), weights.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == weights.end() ? "" : most->first;
}

fs::path Normal(const std::string& path) {
  const fs::path normal = fs::path(path).lexically_normal();
  return normal.has_filename() ? normal : normal.parent_path();
}

// The last part of each path, or the whole paths where two would be the same.
void NameModels(std::vector<ComparedModel>* models) {
  std::map<std::string, int> uses;
  for (const ComparedModel& model : *models) ++uses[Normal(model.path).filename().string()];
  for (ComparedModel& model : *models) {
    const std::string last = Normal(model.path).filename().string();
    model.name = uses[last] == 1 ? last : model.path;
  }
}

// The last characters of a name where it is too long.
std::string Tail(const std::string& name, size_t width) {
  if (name.size() <= width) return name;
  size_t begin = name.size() - width + 2;
  while (begin < name.size() && (static_cast<unsigned char>(name[begin]) & 0xC0) == 0x80) ++begin;
  return ".." + name.substr(begin);
}

std::string SizeText(int64_t bytes) {
  const double mib = static_cast<double>(bytes) / (1 << 20);
  return mib < 10000 ? absl::StrFormat("%.1f MiB", mib) : absl::StrFormat("%.1f GiB", mib / 1024);
}

// Mean over the tasks.
double MeanAccNorm(const Evaluation& e) {
  double sum = 0;
  for (const TaskFigures& task : e.tasks) {
    sum += static_cast<double>(task.correct_norm) / static_cast<double>(task.questions);
  }
  return e.tasks.empty() ? 0 : sum / static_cast<double>(e.tasks.size());
}

double TokensPerSecond(const Evaluation& e) { return static_cast<double>(e.tokens) / std::max(e.model_seconds, 1e-9); }

}  // namespace

absl::StatusOr<Comparison> CompareModels(const std::vector<std::string>& paths, const std::string& reference, bool best,
                                         const OptionsOfModel& options_of) {
  Comparison comparison;
  comparison.reference = reference;
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelSession> compared_with, OpenModel(reference, best));
  for (const std::string& path : paths) {
    std::fprintf(stderr, "%d of %d: %s\n", static_cast<int>(comparison.models.size()) + 1,
                 static_cast<int>(paths.size()), path.c_str());
    ComparedModel compared;
    compared.path = path;
    compared.is_reference = Normal(path) == Normal(reference);
    std::unique_ptr<ModelSession> opened;
    if (!compared.is_reference) {
      ASSIGN_OR_RETURN(opened, OpenModel(path, best));
    }
    ModelSession* model = opened == nullptr ? compared_with.get() : opened.get();
    compared.format = FormatOf(*model);
    compared.parameters = model->decoder.config.ParameterCount();
    compared.file_bytes = BytesOfWeights(*model);
    ASSIGN_OR_RETURN(const EvaluationOptions options, options_of(*model));
    absl::StatusOr<Evaluation> evaluation =
        EvaluateModel(model, compared.is_reference ? nullptr : compared_with.get(), options);
    if (!evaluation.ok()) {
      return absl::Status(evaluation.status().code(), absl::StrCat(path, ": ", evaluation.status().message()));
    }
    compared.evaluation = *std::move(evaluation);
    comparison.models.push_back(std::move(compared));
  }
  NameModels(&comparison.models);
  return comparison;
}

Json ComparisonJson(const Comparison& comparison) {
  Json json = {{"reference", comparison.reference}, {"models", Json::array()}};
  for (const ComparedModel& model : comparison.models) {
    Json entry = {{"path", model.path},
                  {"format", model.format},
                  {"parameters", model.parameters},
                  {"file_bytes", model.file_bytes},
                  {"bits_per_weight", model.bits_per_weight()},
                  {"is_reference", model.is_reference}};
    entry.update(EvaluationJson(model.evaluation));
    json["models"].push_back(std::move(entry));
  }
  return json;
}

std::string FormatComparison(const Comparison& comparison) {
  if (comparison.models.empty()) return "";
  const Evaluation& first = comparison.models[0].evaluation;
  const bool tasks = !first.tasks.empty();
  std::string text = absl::StrFormat("%-16s %-7s %6s %10s", "model", "format", "bits/w", "size");
  if (first.scored) absl::StrAppendFormat(&text, " %8s %8s %6s", "perplex.", "KL mean", "top-1");
  if (tasks) absl::StrAppendFormat(&text, " %5s", "acc_n");
  if (first.scored) absl::StrAppendFormat(&text, " %6s", "tok/s");
  text += '\n';
  for (const ComparedModel& model : comparison.models) {
    const Evaluation& e = model.evaluation;
    absl::StrAppendFormat(&text, "%-16s %-7s %6.2f %10s", Tail(model.name, 16), model.format, model.bits_per_weight(),
                          SizeText(model.file_bytes));
    if (e.scored) {
      absl::StrAppendFormat(&text, " %8.5g", std::exp(e.loss));
      text += e.compared ? absl::StrFormat(" %8.2e %5.1f%%", e.divergence.mean_kl, 100 * e.divergence.top1_agreement)
                         : absl::StrFormat(" %8s %6s", "-", "-");
    }
    if (tasks) absl::StrAppendFormat(&text, " %5.1f", 100 * MeanAccNorm(e));
    if (e.scored) absl::StrAppendFormat(&text, " %6.0f", TokensPerSecond(e));
    text += '\n';
  }
  if (first.scored) {
    absl::StrAppendFormat(&text, "%d of %d tokens scored; KL(reference || model) in nats; reference:\n%s\n",
                          first.targets, first.tokens, comparison.reference);
  }
  return text;
}

}  // namespace thimble
