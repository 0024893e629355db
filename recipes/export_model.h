// A trained or plain model to a folder: written beside, read back, measured, judged, and only then put in its place.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/bnb_weight.h"
#include "nlohmann/json.hpp"
#include "recipes/forward_memory.h"
#include "recipes/session.h"
#include "trainer/export.h"
#include "trainer/export_gguf.h"

namespace thimble {

struct ExportRequest {
  bool adapter = false;               // the adapter instead of whole weights: PEFT's, or as GGUF
  bool gguf = false;                  // model.gguf or adapter.gguf instead of safetensors
  const GgufMix* gguf_mix = nullptr;  // of whole weights as GGUF; null: options.dtype
  // The merged weights are quantised as `thimble quantize` does it.
  std::optional<Quantize4BitOptions> quantize;
  ExportOptions options;
  std::string out;
  std::vector<std::string> data;  // rows to compare over, in place of the recipe's held-out ones
  int64_t max_batches = 64;       // micro-batches of them
  // Of a run that has just trained; null: made for the comparison.
  Engine* engine = nullptr;
  const DataSession* run_data = nullptr;
};

// What was left of the trained model behind a step of the export.
struct ExportStep {
  std::string step;    // "merged", "quantised" or "adapter"
  std::string format;  // "bf16"
  ExportQuality quality;
};

struct ExportReport {
  std::string path;
  bool adapter = false;
  bool gguf = false;
  std::string dtype;       // "bf16", "q4_k_m"
  std::string base;        // the folder the weights came from; empty: trained from scratch
  int64_t tensors = 0;     // written
  int64_t bytes = 0;       // of the files with tensors
  int64_t merged = 0;      // linear layers whose adapter went into the weight
  int64_t decoded = 0;     // linear layers decoded from blocks
  std::string block_type;  // "nf4": of these
  std::string compared_over;
  ForwardMemory memory;
  bool measured = false;
  std::string not_measured;  // why, where it was not
  std::vector<ExportStep> steps;
  ExportQuality quality;  // of the last step
  absl::Status verdict;   // Aborted, with the figures, above the limits: nothing is left behind then
};

// Writes quality.json and the model card README.md into the folder as well. `model` is loaded. An error leaves nothing
// behind, and neither does a verdict that is not OK; a folder that is at `out` already is replaced by an accepted
// export. An adapter's tensors are read back and must be the trained ones bit for bit; whole weights are compared by
// their distributions over held-out rows, where there are any, after merging and after quantising. The verdict names
// the step that lost what is above a limit.
absl::StatusOr<ExportReport> ExportModel(ModelSession* model, const ExportRequest& request);

std::string FormatExportReport(const ExportReport& report, const ExportOptions& limits);
// path, format, dtype, base, tensors, bytes, merged_layers, decoded_layers, decoded_format, memory.{planned_bytes,
// measured_bytes}, accepted, quality.{mean_kl, max_kl, agreement, tokens, rows} and the keys of QualityJson (null where
// nothing was measured).
nlohmann::ordered_json ExportReportJson(const ExportReport& report, const ExportOptions& limits);

// What quality.json holds: rows, tokens, targets, limits.{max_kl,min_agreement}, trained.{loss,perplexity} and steps,
// of each step, format, loss, perplexity, kl_mean, kl_max, top1_agreement; or measured (false) and why.
nlohmann::ordered_json QualityJson(const ExportReport& report, const ExportOptions& limits);
// README.md: what the folder is and the figures of QualityJson.
std::string ModelCard(const ModelSession& model, const ExportReport& report, const ExportOptions& limits);
// Aborted, with the figures and the step, where the last step is above a limit.
absl::Status JudgeSteps(const std::vector<ExportStep>& steps, const ExportOptions& limits);

}  // namespace thimble
