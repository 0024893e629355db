// How a run ended: summary.json and the last lines on the screen.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "nlohmann/json.hpp"
#include "recipes/planned_run.h"
#include "trainer/checkpoint.h"
#include "trainer/export.h"
#include "trainer/run_plan.h"

namespace thimble {

struct RunSummary {
  TrainState state;
  double train_loss = 0;  // of the last step
  bool stopped_early = false;
  RunPlan plan;
  MeasuredBytes measured;
  double stalled_seconds = 0;  // in which the kernels waited for transfers
  int64_t process_peak_bytes = 0;
  std::string export_path;      // empty: nothing to export
  bool export_accepted = true;  // false: above a limit, so that nothing is there
  bool export_measured = false;
  ExportQuality quality;
  nlohmann::ordered_json export_steps;  // as in quality.json
};

// Keys: steps, tokens, targets, seconds, tokens_per_second, train_loss, eval_loss_before, eval_loss_after,
// eval_loss_best, best_step, stopped_early, memory.device.{planned_bytes,measured_bytes}, memory.process.{...},
// export.{path (null where it was refused), accepted, mean_kl, max_kl, agreement, tokens, trained_loss, loss, steps}.
nlohmann::ordered_json RunSummaryJson(const RunSummary& summary);
std::string FormatRunSummary(const RunSummary& summary, const std::string& folder);

// Aborted (exit code 1), with figures and limits, when the export lost more than
// the recipe allows.
absl::Status JudgeExport(const ExportQuality& quality, const ExportOptions& limits);

}  // namespace thimble
