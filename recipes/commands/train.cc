// thimble train: runs a recipe, or goes on with a run.
#include <gflags/gflags.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/recipe_reader.h"
#include "recipes/train_run.h"

DEFINE_string(resume, "", "Go on with this run folder from its latest checkpoint, bit for bit.");

namespace thimble {
namespace {

absl::Status RunTrain(const CommandLine& line) {
  if (!FLAGS_resume.empty()) {
    if (!line.arguments.empty() || !line.Values("set").empty()) {
      return absl::InvalidArgumentError(
          "--resume takes the run's own recipe: give no RECIPE and no --set, or start a new run");
    }
    const std::string recipe_path = (std::filesystem::path(FLAGS_resume) / "recipe.yaml").string();
    std::error_code error;
    if (!std::filesystem::exists(recipe_path, error)) {
      return absl::NotFoundError(absl::StrCat(FLAGS_resume, ": no run folder: it has no recipe.yaml"));
    }
    ASSIGN_OR_RETURN(recipe::Recipe recipe, ReadRecipe(recipe_path, {}));
    // A run folder may have been moved since it was written.
    recipe.mutable_output()->set_folder(std::filesystem::absolute(FLAGS_resume, error).string());
    return TrainRun(recipe, /*resume=*/true);
  }
  if (line.arguments.empty()) return absl::InvalidArgumentError("give a RECIPE, or --resume=RUN");
  const std::vector<std::string> overrides = line.Values("set");
  ASSIGN_OR_RETURN(const recipe::Recipe recipe, ReadRecipe(line.arguments[0], overrides));
  return TrainRun(recipe, /*resume=*/false, [&line, &overrides](const std::vector<std::string>& assignments) {
    std::vector<std::string> all = overrides;
    all.insert(all.end(), assignments.begin(), assignments.end());
    return ReadRecipe(line.arguments[0], all);
  });
}

}  // namespace

Command TrainCommand() {
  Command command;
  command.name = "train";
  command.summary = "Run a recipe, or go on with a run.";
  command.usage = "[RECIPE]";
  command.description =
      "Plans the memory, refuses what does not fit, trains, evaluates, and exports\n"
      "as the recipe says. The run folder (output.folder) gets the resolved recipe,\n"
      "checkpoints, metrics.jsonl, TensorBoard events, report.html and summary.json.\n"
      "Ctrl-C writes a checkpoint first.";
  command.example =
      "  thimble train recipes/qlora.yaml --set model.path=BASE \\\n"
      "      --set data.train=rows.jsonl --set output.folder=runs/first\n"
      "  thimble train --resume runs/first";
  command.max_arguments = 1;
  command.flags = {"resume", "set"};
  command.repeated_flags = {"set"};
  command.run = RunTrain;
  return command;
}

}  // namespace thimble
