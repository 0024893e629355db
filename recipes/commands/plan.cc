// thimble plan: the memory of a recipe's run, before it runs.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/plan_policies.h"
#include "recipes/recipe_reader.h"

namespace thimble {
namespace {

constexpr size_t kAliveShown = 8;

absl::Status RunPlanCommand(const CommandLine& line) {
  ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(line.arguments[0], line.Values("set")));
  ASSIGN_OR_RETURN(PlannedRun run, PlanRun(recipe));
  const absl::Status fits = CheckBudget(run.plan, run.engine_options);
  const std::vector<PolicyPlan> policies = PlanPolicies(&run);
  if (FLAGS_json) {
    nlohmann::ordered_json json = RunPlanJson(run.plan);
    json["fits"] = fits.ok();
    json["parameters"] = run.model->decoder.config.ParameterCount();
    json["trained_parameters"] = TrainedParameters(*run.model);
    json["activations"] = PoliciesJson(policies);
    std::printf("%s\n", json.dump(2).c_str());
    return fits;
  }
  std::printf("%s\n%s\n%s", DescribeModel(*run.model).c_str(), FormatRunPlan(run.plan, kAliveShown).c_str(),
              FormatPolicies(policies).c_str());
  return fits;
}

}  // namespace

Command PlanCommand() {
  Command command;
  command.name = "plan";
  command.summary = "Show what a recipe will take in memory, without running it.";
  command.usage = "RECIPE";
  command.description =
      "Plans every byte of the run: by category, at the op where memory is fullest,\n"
      "with activations kept and computed again, and, under a memory.device_budget,\n"
      "the longest data.seq_len that fits. Reads the data (its longest micro-batch\n"
      "counts) and the base's headers, no weights. Exit code 3 when the plan is above\n"
      "the budget.\n"
      "JSON: tiers.{device,host,disk}.{budget_bytes,planned_bytes,lower_bound_bytes},\n"
      "process_planned_bytes, categories, arena_bytes, micro_batch_tokens, peak.{step,\n"
      "alive}, fits, parameters, trained_parameters and activations.{keep,recompute}.\n"
      "{planned_bytes,lower_bound_bytes,longest_seq_len}.";
  command.example =
      "  thimble plan recipes/qlora.yaml --set model.path=BASE \\\n"
      "      --set data.train=rows.jsonl --set memory.device_budget=2GiB";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"json", "set"};
  command.repeated_flags = {"set"};
  command.run = RunPlanCommand;
  return command;
}

}  // namespace thimble
