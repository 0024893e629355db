#include "recipes/run_summary.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thimble {
namespace {

double Rate(const TrainState& state) {
  return state.seconds > 0 ? static_cast<double>(state.tokens) / state.seconds : 0;
}

}  // namespace

nlohmann::ordered_json RunSummaryJson(const RunSummary& summary) {
  const TrainState& state = summary.state;
  nlohmann::ordered_json json;
  json["steps"] = state.step;
  json["tokens"] = state.tokens;
  json["targets"] = state.targets;
  json["seconds"] = state.seconds;
  json["tokens_per_second"] = Rate(state);
  json["train_loss"] = summary.train_loss;
  const auto loss = [&json](const char* key, double value) {
    json[key] = nullptr;
    if (value >= 0) json[key] = value;
  };
  loss("eval_loss_before", state.loss_before);
  loss("eval_loss_after", state.last_eval_loss);
  loss("eval_loss_best", state.best_eval_loss);
  json["best_step"] = state.best_step;
  json["stopped_early"] = summary.stopped_early;
  json["memory"]["device"]["planned_bytes"] = summary.plan.planned_bytes;
  json["memory"]["device"]["measured_bytes"] = summary.measured.device;
  json["memory"]["host"]["planned_bytes"] = summary.plan.host.planned_bytes;
  json["memory"]["host"]["measured_bytes"] = summary.measured.host;
  json["memory"]["disk"]["planned_bytes"] = summary.plan.disk.planned_bytes;
  json["memory"]["disk"]["measured_bytes"] = summary.measured.disk;
  json["memory"]["stalled_seconds"] = summary.stalled_seconds;
  json["memory"]["process"]["planned_bytes"] = summary.plan.process_bytes;
  json["memory"]["process"]["measured_bytes"] = summary.process_peak_bytes;
  if (!summary.export_path.empty()) {
    json["export"]["path"] = nullptr;
    if (summary.export_accepted) json["export"]["path"] = summary.export_path;
    json["export"]["accepted"] = summary.export_accepted;
    if (summary.export_measured) {
      json["export"]["mean_kl"] = summary.quality.mean_kl;
      json["export"]["max_kl"] = summary.quality.max_kl;
      json["export"]["agreement"] = summary.quality.agreement;
      json["export"]["tokens"] = summary.quality.tokens;
      json["export"]["trained_loss"] = summary.quality.trained_loss;
      json["export"]["loss"] = summary.quality.loss;
      json["export"]["steps"] = summary.export_steps;
    }
  }
  return json;
}

std::string FormatRunSummary(const RunSummary& summary, const std::string& folder) {
  const TrainState& state = summary.state;
  std::string text = absl::StrFormat("Done: %d steps, %d tokens in %.1f s, %.0f tokens/s%s\n", state.step, state.tokens,
                                     state.seconds, Rate(state), summary.stopped_early ? " (stopped early)" : "");
  if (state.loss_before >= 0) {
    absl::StrAppendFormat(&text, "  held-out loss    %.4f before, %.4f after (best %.4f at step %d)\n",
                          state.loss_before, state.last_eval_loss, state.best_eval_loss, state.best_step);
  }
  absl::StrAppendFormat(&text, "  device memory    planned %s, measured %s\n", MiBText(summary.plan.planned_bytes),
                        MiBText(summary.measured.device));
  const auto tier = [&](const char* name, int64_t planned, int64_t measured) {
    if (planned == 0) return;
    absl::StrAppendFormat(&text, "  %-16s planned %s, measured %s\n", name, MiBText(planned), MiBText(measured));
  };
  tier("host memory", summary.plan.host.planned_bytes, summary.measured.host);
  tier("spill file", summary.plan.disk.planned_bytes, summary.measured.disk);
  if (summary.plan.host.planned_bytes + summary.plan.disk.planned_bytes > 0 && state.seconds > 0) {
    absl::StrAppendFormat(&text, "  waited for them  %.1f s, %.1f%% of the time\n", summary.stalled_seconds,
                          100 * summary.stalled_seconds / state.seconds);
  }
  absl::StrAppendFormat(&text, "  process memory   planned %s, measured %s\n", MiBText(summary.plan.process_bytes),
                        MiBText(summary.process_peak_bytes));
  if (!summary.export_path.empty()) {
    absl::StrAppend(&text, "  exported         ",
                    summary.export_accepted ? summary.export_path : "nothing: refused, see below", "\n");
  }
  if (summary.export_measured) {
    absl::StrAppendFormat(&text, "  export loss      %.4f, %.4f as trained\n", summary.quality.loss,
                          summary.quality.trained_loss);
    absl::StrAppendFormat(&text, "  export read back mean KL %.2e nats, %.2f%% same top token, %d tokens\n",
                          summary.quality.mean_kl, 100 * summary.quality.agreement, summary.quality.tokens);
  }
  absl::StrAppend(&text, "  run folder       ", folder, " (report.html, summary.json, checkpoints)");
  return text;
}

absl::Status JudgeExport(const ExportQuality& quality, const ExportOptions& limits) {
  // A NaN is above every limit.
  if (!(quality.mean_kl <= limits.max_kl)) {
    return absl::AbortedError(absl::StrFormat(
        "the exported model differs from the trained one: mean KL %.3g nats, output.export.max_kl allows %.3g",
        quality.mean_kl, limits.max_kl));
  }
  if (!(quality.agreement >= limits.min_agreement)) {
    return absl::AbortedError(
        absl::StrFormat("the exported model differs from the trained one: %.2f%% same top token, "
                        "output.export.min_agreement asks for %.2f%%",
                        100 * quality.agreement, 100 * limits.min_agreement));
  }
  return absl::OkStatus();
}

}  // namespace thimble
