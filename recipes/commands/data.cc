// thimble data: what a recipe's rows become: counts, and the first rows with their targets marked.
#include <gflags/gflags.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "data/data_report.h"
#include "ops/check.h"
#include "recipes/auto_sizes.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/planned_run.h"
#include "recipes/recipe_reader.h"
#include "recipes/text_layout.h"

DEFINE_int64(rows, 3, "So many first rows are shown.");
DEFINE_int64(max_tokens, 256, "Tokens of a row that are shown.");

namespace thimble {
namespace {

using Json = nlohmann::ordered_json;

struct Reports {
  DataReport train, validation;
  bool has_validation = false;
};

Reports MakeReports(const DataSession& data) {
  Reports reports;
  reports.train = MakeDataReport(data.train, *data.train_stream, *data.encoder);
  if (data.eval_stream != nullptr) {
    const TokenisedDataset& set = data.validation.rows != nullptr ? data.validation : data.train;
    reports.validation = MakeDataReport(set, *data.eval_stream, *data.encoder);
    reports.has_validation = true;
  }
  return reports;
}

absl::StatusOr<Json> RowJson(const TokenRows& rows, const Tokenizer& tokenizer, int64_t row) {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> is_target;
  RETURN_IF_ERROR(rows.Read(row, 0, std::min(rows.length(row), FLAGS_max_tokens), &tokens, &is_target));
  Json json;
  json["length"] = rows.length(row);
  json["targets"] = rows.num_targets(row);
  json["text"] = tokenizer.Decode(tokens, /*skip_special_tokens=*/false);
  json["tokens"] = tokens;
  json["is_target"] = Json::array();
  for (uint8_t target : is_target) json["is_target"].push_back(target != 0);
  return json;
}

absl::Status PrintJson(const ModelSession& model, const DataSession& data, const Reports& reports) {
  Json json;
  json["train"] = Json::parse(DataReportJson(reports.train));
  json["validation"] = nullptr;
  if (reports.has_validation) json["validation"] = Json::parse(DataReportJson(reports.validation));
  json["rows"] = Json::array();
  for (int64_t row = 0; row < std::min(FLAGS_rows, data.train.rows->size()); ++row) {
    ASSIGN_OR_RETURN(Json shown, RowJson(*data.train.rows, *model.tokenizer, row));
    json["rows"].push_back(std::move(shown));
  }
  std::printf("%s\n", json.dump(1, ' ', false, Json::error_handler_t::replace).c_str());
  return absl::OkStatus();
}

absl::Status PrintText(const ModelSession& model, const DataSession& data, const Reports& reports) {
  std::string form;
  AppendEntry("Data:", reports.train.form, 6, &form);
  std::printf("%sChat format: %s\n\nTraining rows\n%s", form.c_str(), reports.train.chat_format.c_str(),
              FormatDataReport(reports.train).c_str());
  if (!reports.has_validation) {
    std::printf("\nNo validation rows (data.validation or data.validation_share)\n");
  } else if (data.validation.rows != nullptr) {
    std::string validation_form;
    AppendEntry("Validation rows:", reports.validation.form, 17, &validation_form);
    std::printf("\n%s%s", validation_form.c_str(), FormatDataReport(reports.validation).c_str());
  } else {
    std::printf("\nValidation rows, held out of the training files\n%s", FormatDataReport(reports.validation).c_str());
  }
  if (FLAGS_rows == 0) return absl::OkStatus();
  const bool terminal = isatty(STDOUT_FILENO) == 1;
  ASSIGN_OR_RETURN(const std::string rows, RenderRows(*data.train.rows, *model.tokenizer, FLAGS_rows, FLAGS_max_tokens,
                                                      terminal ? MarkStyle::kAnsi : MarkStyle::kBrackets));
  std::printf("\nFirst rows; what is learned is %s\n%s", terminal ? "\x1b[32mgreen\x1b[0m" : "in [[brackets]]",
              rows.c_str());
  return absl::OkStatus();
}

absl::Status RunData(const CommandLine& line) {
  if (FLAGS_rows < 0) return absl::InvalidArgumentError("--rows: expected 0 or more");
  if (FLAGS_max_tokens < 1) return absl::InvalidArgumentError("--max_tokens: expected 1 or more");
  ASSIGN_OR_RETURN(Recipe recipe, ReadRecipe(line.arguments[0], line.Values("set")));
  // Rows do not depend on it, and `auto` would measure.
  recipe.set_compute(Recipe::COMPUTE_F32);
  PlannedRun run;
  if (HasAutoSizes(recipe)) {
    ASSIGN_OR_RETURN(run, PlanRun(recipe));
    std::fprintf(stderr, "%s\n", run.auto_sizes.c_str());
  } else {
    ASSIGN_OR_RETURN(run.model, DeclareModel(recipe));
    ASSIGN_OR_RETURN(run.data, PrepareData(*run.model));
  }
  for (const TokenisedDataset* set : {&run.data.train, &run.data.validation}) {
    if (!set->warning.empty()) std::fprintf(stderr, "warning: %s\n", set->warning.c_str());
  }
  const Reports reports = MakeReports(run.data);
  return FLAGS_json ? PrintJson(*run.model, run.data, reports) : PrintText(*run.model, run.data, reports);
}

}  // namespace

Command DataCommand() {
  Command command;
  command.name = "data";
  command.summary = "Show a recipe's rows as the model will see them.";
  command.usage = "RECIPE";
  command.description =
      "Counts of rows read, kept, cut, dropped and without targets, tokens and the\n"
      "share of targets, for training and validation; then the first training rows,\n"
      "with what is learned in green on a terminal, in [[brackets]] elsewhere. Needs\n"
      "the tokenizer and the base's config, no weights. JSON: train and validation\n"
      "(null without), each with rows, rows_kept, rows_cut, rows_dropped,\n"
      "rows_no_targets, tokens, targets, target_share, longest_row, median_row, bins,\n"
      "packing_efficiency, batches, form, chat_format; and rows, each with length,\n"
      "targets, text, tokens, is_target.";
  command.example =
      "  thimble data recipes/qlora.yaml --set model.path=BASE \\\n"
      "      --set data.train=rows.jsonl --rows=5";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"rows", "max_tokens", "json", "set"};
  command.repeated_flags = {"set"};
  command.run = RunData;
  return command;
}

}  // namespace thimble
