// What an export says of itself: on the screen, as JSON, as quality.json and as a model card.
#include <cmath>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/export_model.h"
#include "recipes/run_summary.h"
#include "recipes/text_layout.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

std::string NameOf(const std::string& folder) {
  const fs::path path = fs::path(folder).lexically_normal();
  return path.has_filename() ? path.filename().string() : path.parent_path().filename().string();
}

}  // namespace

std::string FormatExportReport(const ExportReport& report, const ExportOptions& limits) {
  std::string text;
  const std::string base = report.base.empty() ? "a model trained from scratch" : report.base;
  if (report.adapter) {
    absl::StrAppend(&text, "Adapter of ", base, ": ", report.tensors,
                    " tensors in f32, read back and equal to the trained ones bit for bit\n");
  } else {
    if (report.decoded > 0) {
      absl::StrAppend(&text, "Decoded ", report.decoded, " linear layers exactly from ", report.block_type, " of ",
                      base, "\n");
    } else {
      absl::StrAppend(&text, "Weights of ", base, "\n");
    }
    if (report.merged > 0) {
      absl::StrAppend(&text, "Merged the adapter into ", report.merged, " linear layers in f32, rounded once to ",
                      report.dtype, "\n");
    }
  }
  if (report.dtype == "nf4" || report.dtype == "fp4") {
    absl::StrAppend(&text, "Quantised its linear layers to ", report.dtype, "\n");
  }
  if (report.measured) {
    AppendWrapped(absl::StrFormat("Read back over %d tokens of %s:", report.quality.tokens, report.compared_over), 0,
                  &text);
    absl::StrAppendFormat(&text, "  %-18s loss %.4f, perplexity %.4f\n", "trained", report.quality.trained_loss,
                          std::exp(report.quality.trained_loss));
    for (const ExportStep& step : report.steps) {
      const ExportQuality& q = step.quality;
      absl::StrAppendFormat(&text, "  %-18s loss %.4f, mean KL %.3g, most %.3g, same top token %.2f%%\n",
                            absl::StrCat(step.step, " (", step.format, ")"), q.loss, q.mean_kl, q.max_kl,
                            100 * q.agreement);
    }
    if (!report.adapter) {
      absl::StrAppendFormat(&text, "  limits             mean KL %.3g nats, same top token %.2f%%\n", limits.max_kl,
                            100 * limits.min_agreement);
    }
  } else {
    AppendWrapped(absl::StrCat("Not measured (", report.not_measured, "): give rows with --data=FILE"), 0, &text);
  }
  absl::StrAppend(&text, "Device memory: planned ", MiBText(report.memory.planned), ", measured ",
                  MiBText(report.memory.measured), "\n");
  if (report.verdict.ok()) {
    absl::StrAppend(&text, "Wrote ", report.path, ": ", report.tensors, " tensors, ", report.dtype, ", ",
                    MiBText(report.bytes), "\n");
  }
  return text;
}

Json ExportReportJson(const ExportReport& report, const ExportOptions& limits) {
  Json json;
  json["path"] = report.path;
  json["format"] = report.gguf ? (report.adapter ? "gguf_adapter" : "gguf") : report.adapter ? "peft" : "safetensors";
  json["dtype"] = report.dtype;
  json["base"] = nullptr;
  if (!report.base.empty()) json["base"] = report.base;
  json["tensors"] = report.tensors;
  json["bytes"] = report.bytes;
  json["merged_layers"] = report.merged;
  json["decoded_layers"] = report.decoded;
  json["decoded_format"] = nullptr;
  if (report.decoded > 0) json["decoded_format"] = report.block_type;
  json["memory"] = {{"planned_bytes", report.memory.planned}, {"measured_bytes", report.memory.measured}};
  json["accepted"] = report.verdict.ok();
  json["quality"] = nullptr;
  if (report.measured) {
    json["quality"] = {{"mean_kl", report.quality.mean_kl},
                       {"max_kl", report.quality.max_kl},
                       {"agreement", report.quality.agreement},
                       {"tokens", report.quality.tokens},
                       {"rows", report.compared_over}};
    json["quality"].update(QualityJson(report, limits));
  }
  return json;
}

Json QualityJson(const ExportReport& report, const ExportOptions& limits) {
  if (!report.measured) return {{"measured", false}, {"why", report.not_measured}};
  const ExportQuality& last = report.quality;
  Json json = {{"measured", true},
               {"rows", report.compared_over},
               {"tokens", last.tokens},
               {"targets", last.targets},
               {"limits", {{"max_kl", limits.max_kl}, {"min_agreement", limits.min_agreement}}},
               {"trained", {{"loss", last.trained_loss}, {"perplexity", std::exp(last.trained_loss)}}},
               {"steps", Json::array()}};
  for (const ExportStep& step : report.steps) {
    const ExportQuality& q = step.quality;
    json["steps"].push_back({{"step", step.step},
                             {"format", step.format},
                             {"loss", q.loss},
                             {"perplexity", std::exp(q.loss)},
                             {"kl_mean", q.mean_kl},
                             {"kl_max", q.max_kl},
                             {"top1_agreement", q.agreement}});
  }
  return json;
}

std::string ModelCard(const ModelSession& model, const ExportReport& report, const ExportOptions& limits) {
  const DecoderConfig& c = model.decoder.config;
  std::string card =
      absl::StrCat("---\nlibrary_name: ", report.adapter ? "peft" : "transformers",
                   "\npipeline_tag: text-generation\ntags: [thimble]\n---\n\n# ", NameOf(report.path), "\n\n");
  const std::string base =
      report.base.empty() ? "a model trained from scratch" : absl::StrCat("`", NameOf(report.base), "`");
  std::string what = absl::StrCat(report.adapter      ? "A PEFT adapter for "
                                  : report.merged > 0 ? "A fine-tune of "
                                                      : "Weights of ",
                                  base,
                                  absl::StrFormat(" (%s, %d layers, %d wide, %d parameters)", c.model_type,
                                                  c.num_layers, c.hidden_dim, c.ParameterCount()));
  const AdapterOptions& adapter = model.decoder.adapter;
  if (adapter.rank > 0) {
    absl::StrAppendFormat(&what, ", trained as %s of rank %d and alpha %g", adapter.dora ? "DoRA" : "LoRA",
                          adapter.rank, adapter.alpha);
  }
  absl::StrAppend(&what, ", written by Thimble with weights in ", report.dtype, ".");
  absl::StrAppend(&card, what, "\n\n## What was measured\n\n");
  if (!report.measured) {
    absl::StrAppend(&card, "Nothing: ", report.not_measured, ".\n");
    return card;
  }
  absl::StrAppendFormat(&card, "Over %d tokens (%d of them scored) of %s:\n\n", report.quality.tokens,
                        report.quality.targets, report.compared_over);
  absl::StrAppend(&card, "| step | loss | perplexity | mean KL | most KL | same top token |\n",
                  "| --- | ---: | ---: | ---: | ---: | ---: |\n");
  absl::StrAppendFormat(&card, "| trained | %.4f | %.4f | | | |\n", report.quality.trained_loss,
                        std::exp(report.quality.trained_loss));
  for (const ExportStep& step : report.steps) {
    const ExportQuality& q = step.quality;
    absl::StrAppendFormat(&card, "| %s (%s) | %.4f | %.4f | %.3g | %.3g | %.2f%% |\n", step.step, step.format, q.loss,
                          std::exp(q.loss), q.mean_kl, q.max_kl, 100 * q.agreement);
  }
  absl::StrAppend(&card,
                  "\nLoss in nats a scored token. KL divergence of the step's next-token distributions from the ",
                  "trained model's, in nats a token");
  if (report.adapter) {
    absl::StrAppend(&card, ": none, as the adapter's tensors are the trained ones bit for bit.\n");
  } else {
    absl::StrAppendFormat(
        &card, "; the export was accepted with at most %.3g on average and at least %.2f%% same top tokens.\n",
        limits.max_kl, 100 * limits.min_agreement);
  }
  return card;
}

absl::Status JudgeSteps(const std::vector<ExportStep>& steps, const ExportOptions& limits) {
  if (steps.empty()) return absl::OkStatus();
  const absl::Status verdict = JudgeExport(steps.back().quality, limits);
  if (verdict.ok()) return verdict;
  double before = 0;
  for (const ExportStep& step : steps) {
    if (JudgeExport(step.quality, limits).ok()) {
      before = step.quality.mean_kl;
      continue;
    }
    return absl::Status(
        verdict.code(),
        absl::StrCat(verdict.message(), "; lost in the step ", step.step, " (", step.format,
                     absl::StrFormat("): mean KL %.3g before it, %.3g after it", before, step.quality.mean_kl)));
  }
  return verdict;
}

}  // namespace thimble
