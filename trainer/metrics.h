// What a run measures: the numbers of steps and evaluations, and metrics.jsonl, which holds them, one JSON object a
// line.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// One optimiser step. Keys of its line: the names of the fields, and tokens_per_second.
struct StepMetrics {
  int64_t step = 0;  // from 1
  double epoch = 0;  // passes over the data so far
  double loss = 0;   // nats per target token, before the step
  double learning_rate = 0;
  double grad_norm = 0;       // before clipping
  int64_t tokens = 0;         // of this step, all micro-batches
  int64_t targets = 0;        // of these, tokens that carry loss
  double seconds = 0;         // wall time of this step
  int64_t device_bytes = 0;   // the arena's high-water mark so far
  int64_t process_bytes = 0;  // the process's peak resident memory so far
  double TokensPerSecond() const { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }
};

// One evaluation. Keys: step, eval_loss, eval_perplexity, eval_targets, eval_seconds, best.
struct EvalMetrics {
  int64_t step = 0;  // steps done before it; 0: before training
  double loss = 0;
  int64_t targets = 0;
  double seconds = 0;
  bool best = false;  // the lowest loss of the run so far
};

// An answer to a sample prompt. Keys: step, prompt, answer.
struct SampleAnswer {
  int64_t step = 0;
  std::string prompt, answer;
};

// A line of metrics.jsonl, with its line end. A number that is not finite is null.
std::string MetricsLine(const StepMetrics& metrics);
std::string MetricsLine(const EvalMetrics& metrics);
std::string MetricsLine(const SampleAnswer& sample);

struct MetricsHistory {
  std::vector<StepMetrics> steps;
  std::vector<EvalMetrics> evals;
  std::vector<SampleAnswer> samples;
};
// Reads metrics.jsonl; null is read as NaN. A last line without an end, as a killed process leaves it, is left out.
// DataLoss names the first other line that is not a metrics line.
absl::StatusOr<MetricsHistory> ReadMetrics(const std::string& path);

// Cuts metrics.jsonl down to what happened up to `step` (inclusive), for a run that is resumed from a checkpoint of
// this step. A missing file is fine. Replaces the file as a whole.
absl::Status CutMetrics(const std::string& path, int64_t step);

}  // namespace thimble
