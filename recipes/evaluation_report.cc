// An evaluation as JSON and as text.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/evaluate.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

double TokensPerSecond(const Evaluation& e) { return static_cast<double>(e.tokens) / std::max(e.model_seconds, 1e-9); }
double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
}
double ShareCorrect(const Evaluation& e) { return Share(e.match_correct, e.match_rows); }
// Of a share of `count` questions, as lm-evaluation-harness states it.
double StandardError(double share, int64_t count) {
  return count < 2 ? 0 : std::sqrt(share * (1 - share) / static_cast<double>(count - 1));
}

Json SliceJson(const SliceFigures& slice) {
  Json json = {{"by", slice.by},
               {"name", slice.name},
               {"rows", slice.rows},
               {"tokens", slice.targets},
               {"tokens_total", slice.tokens}};
  json["loss"] = nullptr;
  json["perplexity"] = nullptr;
  if (slice.targets > 0) {
    json["loss"] = slice.loss;
    json["perplexity"] = std::exp(slice.loss);
  }
  if (slice.compared) AddDivergenceJson(slice.divergence, &json);
  return json;
}

Json TaskJson(const TaskFigures& task) {
  const double acc = Share(task.correct, task.questions), acc_norm = Share(task.correct_norm, task.questions);
  return {{"file", task.file},    {"questions", task.questions},
          {"acc", acc},           {"acc_stderr", StandardError(acc, task.questions)},
          {"acc_norm", acc_norm}, {"acc_norm_stderr", StandardError(acc_norm, task.questions)},
          {"cut", task.cut},      {"seconds", task.seconds}};
}

// The last `width` bytes of a name at most, whole characters.
std::string Tail(const std::string& name, size_t width) {
  if (name.size() <= width) return name;
  size_t begin = name.size() - width + 3;
  while (begin < name.size() && (static_cast<unsigned char>(name[begin]) & 0xC0) == 0x80) ++begin;
  return "..." + name.substr(begin);
}

// One line a slice, at most 80 columns.
void AppendSlices(const Evaluation& e, std::string* text) {
  const std::string* by = nullptr;
  for (const SliceFigures& slice : e.slices) {
    if (by == nullptr || *by != slice.by) {
      absl::StrAppendFormat(text, "\n%-26s %9s %10s %8s", absl::StrCat("by ", Tail(slice.by, 22)), "tokens",
                            "perplexity", "loss");
      absl::StrAppend(text, slice.compared ? "  KL mean   KL 99%  top-1\n" : "\n");
    }
    by = &slice.by;
    absl::StrAppendFormat(text, "%-26s %9d ", Tail(slice.name, 26), slice.targets);
    *text += slice.targets == 0 ? absl::StrFormat("%10s %8s", "-", "-")
                                : absl::StrFormat("%10.5g %8.4f", std::exp(slice.loss), slice.loss);
    if (slice.compared) {
      const DivergenceFigures& d = slice.divergence;
      absl::StrAppendFormat(text, " %8.2e %8.2e %5.1f%%", d.mean_kl, Percentile(d.kl, 0.99), 100 * d.top1_agreement);
    }
    *text += '\n';
  }
}

void AppendTasks(const Evaluation& e, std::string* text) {
  for (const TaskFigures& task : e.tasks) {
    const double acc = Share(task.correct, task.questions), acc_norm = Share(task.correct_norm, task.questions);
    absl::StrAppendFormat(text, "task          %s\n", Tail(task.file, 66));
    absl::StrAppendFormat(text, "              acc %.2f%% +- %.2f, acc_norm %.2f%% +- %.2f, %d questions\n", 100 * acc,
                          100 * StandardError(acc, task.questions), 100 * acc_norm,
                          100 * StandardError(acc_norm, task.questions), task.questions);
    if (task.cut > 0) {
      absl::StrAppendFormat(text, "              %d questions lost the beginning of their context\n", task.cut);
    }
  }
}

}  // namespace

void AddDivergenceJson(const DivergenceFigures& d, Json* json) {
  (*json)["reference_loss"] = d.reference_loss;
  (*json)["reference_perplexity"] = std::exp(d.reference_loss);
  (*json)["kl_mean"] = d.mean_kl;
  (*json)["kl_median"] = Percentile(d.kl, 0.5);
  (*json)["kl_p90"] = Percentile(d.kl, 0.9);
  (*json)["kl_p95"] = Percentile(d.kl, 0.95);
  (*json)["kl_p99"] = Percentile(d.kl, 0.99);
  (*json)["kl_p99_9"] = Percentile(d.kl, 0.999);
  (*json)["kl_max"] = d.kl.back();
  (*json)["top1_agreement"] = d.top1_agreement;
}

Json EvaluationJson(const Evaluation& e) {
  Json json = Json::object();
  if (e.scored) {
    json = {{"tokens", e.targets},      {"loss", e.loss},         {"perplexity", std::exp(e.loss)},
            {"rows", e.rows},           {"rows_cut", e.rows_cut}, {"rows_no_targets", e.rows_no_targets},
            {"tokens_total", e.tokens}, {"seconds", e.seconds},   {"tokens_per_second", TokensPerSecond(e)}};
  }
  if (e.bits_per_byte > 0) json["bits_per_byte"] = e.bits_per_byte;
  if (e.compared) AddDivergenceJson(e.divergence, &json);
  if (!e.slices.empty()) json["slices"] = Json::array();
  for (const SliceFigures& slice : e.slices) json["slices"].push_back(SliceJson(slice));
  if (e.matched) {
    json["exact_match"] = ShareCorrect(e);
    json["exact_match_correct"] = e.match_correct;
    json["exact_match_rows"] = e.match_rows;
    json["exact_match_too_long"] = e.match_too_long;
  }
  if (!e.tasks.empty()) json["tasks"] = Json::array();
  for (const TaskFigures& task : e.tasks) json["tasks"].push_back(TaskJson(task));
  json["memory"] = {{"planned_bytes", e.memory.planned}, {"measured_bytes", e.memory.measured}};
  return json;
}

namespace {

std::string FormatScores(const Evaluation& e) {
  std::string text = absl::StrFormat("loss          %.6f nats a token\nperplexity    %.4f\n", e.loss, std::exp(e.loss));
  if (e.bits_per_byte > 0) absl::StrAppendFormat(&text, "bits/byte     %.4f\n", e.bits_per_byte);
  absl::StrAppendFormat(&text, "scored        %d of %d tokens in %d rows, %.0f tokens/s\n", e.targets, e.tokens, e.rows,
                        TokensPerSecond(e));
  if (e.rows_cut > 0) absl::StrAppendFormat(&text, "cut           %d rows at the model's context\n", e.rows_cut);
  if (e.rows_no_targets > 0) absl::StrAppendFormat(&text, "left out      %d rows without targets\n", e.rows_no_targets);
  if (e.compared) {
    const DivergenceFigures& d = e.divergence;
    absl::StrAppendFormat(&text,
                          "reference     loss %.6f, perplexity %.4f\n"
                          "KL divergence mean %.3g nats, median %.3g, max %.3g;\n"
                          "              90%% %.3g, 95%% %.3g, 99%% %.3g, 99.9%% %.3g\n"
                          "top-1         %.3f%% agree\n",
                          d.reference_loss, std::exp(d.reference_loss), d.mean_kl, Percentile(d.kl, 0.5),
                          static_cast<double>(d.kl.back()), Percentile(d.kl, 0.9), Percentile(d.kl, 0.95),
                          Percentile(d.kl, 0.99), Percentile(d.kl, 0.999), 100 * d.top1_agreement);
  }
  return text;
}

}  // namespace

std::string FormatEvaluation(const Evaluation& e) {
  std::string text = e.scored ? FormatScores(e) : "";
  if (e.matched) {
    absl::StrAppendFormat(&text, "exact match   %.1f%% (%d of %d)\n", 100 * ShareCorrect(e), e.match_correct,
                          e.match_rows);
    if (e.match_too_long > 0) {
      absl::StrAppendFormat(&text, "              %d prompts fill the model's context and count as wrong\n",
                            e.match_too_long);
    }
  }
  AppendTasks(e, &text);
  absl::StrAppend(&text, "memory        planned ", MiBText(e.memory.planned), ", measured ", MiBText(e.memory.measured),
                  "\n");
  AppendSlices(e, &text);
  return text;
}

}  // namespace thimble
