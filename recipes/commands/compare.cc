// thimble compare: several models or formats on the same rows, quality against size.
#include <gflags/gflags.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/eval_flags.h"
#include "recipes/commands/flags.h"
#include "recipes/compare_models.h"

DEFINE_string(html, "", "Also write a page with a plot of quality against size and the table to this file.");

namespace thimble {
namespace {

// Told before hours of evaluation.
absl::Status CheckPage() {
  if (FLAGS_html.empty()) return absl::OkStatus();
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::path(FLAGS_html).parent_path();
  if (folder.empty() || std::filesystem::is_directory(folder, error)) return absl::OkStatus();
  return absl::NotFoundError(absl::StrCat("--html: no folder ", folder.string()));
}

absl::Status RunCompare(const CommandLine& line) {
  RETURN_IF_ERROR(CheckEvaluationFlags(line));
  RETURN_IF_ERROR(CheckPage());
  const std::string reference = FLAGS_reference.empty() ? line.arguments[0] : FLAGS_reference;
  ASSIGN_OR_RETURN(const Comparison comparison,
                   CompareModels(line.arguments, reference, FLAGS_best, [&line](const ModelSession& model) {
                     return EvaluationOptionsFromFlags(model, line);
                   }));
  if (!FLAGS_html.empty()) RETURN_IF_ERROR(WriteFileAtomically(FLAGS_html, ComparisonPage(comparison)));
  if (FLAGS_json) {
    std::printf("%s\n",
                ComparisonJson(comparison).dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else {
    std::fputs(FormatComparison(comparison).c_str(), stdout);
  }
  return absl::OkStatus();
}

}  // namespace

Command CompareCommand() {
  Command command;
  command.name = "compare";
  command.summary = "Compare models or formats: size, perplexity, divergence, choices, speed.";
  command.usage = "MODEL...";
  command.description =
      "Evaluates each MODEL (as thimble eval takes them) on the same rows, one after\n"
      "another. The first is the reference that the others' distributions are compared\n"
      "with, unless --reference names another. Size is that of the files with weights;\n"
      "bits/w divides it by the parameters. acc_n is acc_norm of --task, the mean over\n"
      "several. --html=FILE writes a page with a plot of quality against size.\n"
      "--json gives reference, and models: path, format, parameters, file_bytes,\n"
      "bits_per_weight, is_reference, and all that thimble eval --json gives.";
  command.example =
      "  thimble compare base base-nf4 base-fp4 --data=book.txt --context=512\n"
      "  thimble compare base base-nf4 --data=rows.jsonl --html=page.html";
  command.min_arguments = 1;
  command.max_arguments = 1000;
  command.flags = {"data", "form",      "chat_format", "loss_on", "context", "batch_tokens", "max_rows",
                   "eos",  "reference", "task",        "best",    "html",    "json"};
  command.repeated_flags = {"data", "task"};
  command.run = RunCompare;
  return command;
}

}  // namespace thimble
