// An evaluation as JSON and as text.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/evaluate.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

double TokensPerSecond(const Evaluation& e) { return static_cast<double>(e.tokens) / std::max(e.seconds, 1e-9); }
double ShareCorrect(const Evaluation& e) {
  return e.match_rows == 0 ? 0 : static_cast<double>(e.match_correct) / static_cast<double>(e.match_rows);
}

}  // namespace

Json EvaluationJson(const Evaluation& e) {
  Json json = {{"tokens", e.targets},      {"loss", e.loss},         {"perplexity", std::exp(e.loss)},
               {"rows", e.rows},           {"rows_cut", e.rows_cut}, {"rows_no_targets", e.rows_no_targets},
               {"tokens_total", e.tokens}, {"seconds", e.seconds},   {"tokens_per_second", TokensPerSecond(e)}};
  if (e.bits_per_byte > 0) json["bits_per_byte"] = e.bits_per_byte;
  if (e.compared) {
    const DivergenceFigures& d = e.divergence;
    json["reference_loss"] = d.reference_loss;
    json["reference_perplexity"] = std::exp(d.reference_loss);
    json["kl_mean"] = d.mean_kl;
    json["kl_median"] = Percentile(d.kl, 0.5);
    json["kl_p90"] = Percentile(d.kl, 0.9);
    json["kl_p95"] = Percentile(d.kl, 0.95);
    json["kl_p99"] = Percentile(d.kl, 0.99);
    json["kl_p99_9"] = Percentile(d.kl, 0.999);
    json["kl_max"] = d.kl.back();
    json["top1_agreement"] = d.top1_agreement;
  }
  if (e.matched) {
    json["exact_match"] = ShareCorrect(e);
    json["exact_match_correct"] = e.match_correct;
    json["exact_match_rows"] = e.match_rows;
    json["exact_match_too_long"] = e.match_too_long;
  }
  json["memory"] = {{"planned_bytes", e.memory.planned}, {"measured_bytes", e.memory.measured}};
  return json;
}

std::string FormatEvaluation(const Evaluation& e) {
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
  if (e.matched) {
    absl::StrAppendFormat(&text, "exact match   %.1f%% (%d of %d)\n", 100 * ShareCorrect(e), e.match_correct,
                          e.match_rows);
    if (e.match_too_long > 0) {
      absl::StrAppendFormat(&text, "              %d prompts fill the model's context and count as wrong\n",
                            e.match_too_long);
    }
  }
  absl::StrAppend(&text, "memory        planned ", MiBText(e.memory.planned), ", measured ", MiBText(e.memory.measured),
                  "\n");
  return text;
}

}  // namespace thimble
