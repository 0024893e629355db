// A trained or plain model to a folder: written beside, read back, measured, judged, and only then put in its place.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "recipes/forward_memory.h"
#include "recipes/session.h"
#include "trainer/export.h"

namespace thimble {

struct ExportRequest {
  bool adapter = false;  // a PEFT adapter instead of whole weights
  ExportOptions options;
  std::string out;
  std::vector<std::string> data;  // rows to compare over, in place of the recipe's held-out ones
  int64_t max_batches = 64;       // micro-batches of them
  // Of a run that has just trained; null: made for the comparison.
  Engine* engine = nullptr;
  const DataSession* run_data = nullptr;
};

struct ExportReport {
  std::string path;
  bool adapter = false;
  std::string dtype;       // "bf16"
  std::string base;        // the folder the weights came from; empty: trained from scratch
  int64_t tensors = 0;     // written
  int64_t bytes = 0;       // of the files with tensors
  int64_t merged = 0;      // linear layers whose adapter went into the weight
  int64_t decoded = 0;     // linear layers decoded from 4 bits
  std::string block_type;  // "nf4": of these
  std::string compared_over;
  ForwardMemory memory;
  bool measured = false;
  ExportQuality quality;
  absl::Status verdict;  // Aborted, with the figures, above the limits: nothing is left behind then
};

// `model` is loaded. An error leaves nothing behind, and neither does a verdict that is not OK; a folder that is at
// `out` already is replaced by an accepted export. An adapter's tensors are read back and must be the trained ones
// bit for bit; whole weights are compared by their distributions over held-out rows, where there are any.
absl::StatusOr<ExportReport> ExportModel(ModelSession* model, const ExportRequest& request);

std::string FormatExportReport(const ExportReport& report, const ExportOptions& limits);
// path, format, dtype, base, tensors, bytes, merged_layers, decoded_layers, decoded_format, memory.{planned_bytes,
// measured_bytes}, accepted, quality.{mean_kl,
// max_kl, agreement, tokens, rows} (null where nothing was compared).
nlohmann::ordered_json ExportReportJson(const ExportReport& report);

}  // namespace thimble
