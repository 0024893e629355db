// thimble plan: the memory and time of a recipe's run, before it runs.
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/plan_changes.h"
#include "recipes/plan_policies.h"
#include "recipes/recipe_reader.h"

namespace thimble {
namespace {

constexpr size_t kAliveShown = 8;
constexpr size_t kOpsShown = 3;
constexpr size_t kChangesShown = 3;

std::string FormatPrediction(const TapeTime& time, int64_t tokens) {
  std::string text = absl::StrFormat(
      "Predicted: %s for a step of %d tokens, %.3g tokens/s\n"
      "  arithmetic bounds %.0f%% of it, memory bandwidth %.0f%%; most goes to\n",
      SecondsText(time.seconds), tokens, static_cast<double>(tokens) / time.seconds,
      100 * time.compute_seconds / time.seconds, 100 - 100 * time.compute_seconds / time.seconds);
  for (size_t i = 0; i < time.by_op.size() && i < kOpsShown; ++i) {
    absl::StrAppendFormat(&text, "  %-40s %11.0f%%\n", time.by_op[i].first, 100 * time.by_op[i].second / time.seconds);
  }
  return text;
}

nlohmann::ordered_json PredictionJson(const TapeTime& time, int64_t tokens, const MachineRates& rates) {
  nlohmann::ordered_json json;
  json["step_seconds"] = time.seconds;
  json["step_tokens"] = tokens;
  json["tokens_per_second"] = static_cast<double>(tokens) / time.seconds;
  json["bound_by"] = 2 * time.compute_seconds >= time.seconds ? "arithmetic" : "memory";
  json["arithmetic_share"] = time.compute_seconds / time.seconds;
  json["flops"] = time.flops;
  json["bytes"] = time.bytes;
  for (const auto& [op, seconds] : time.by_op) json["ops"][op] = seconds;
  json["rates"] = {{"f32_flops", rates.f32_flops},
                   {"bf16_flops", rates.bf16_flops},
                   {"attention_f32_flops", rates.attention_f32_flops},
                   {"attention_bf16_flops", rates.attention_bf16_flops},
                   {"memory_bytes", rates.memory_bytes},
                   {"copy_bytes", rates.copy_bytes},
                   {"disk_bytes", rates.disk_bytes}};
  return json;
}

// Where the plan is above its budget.
PlanChanges ChangesOf(const CommandLine& line, const PlannedRun& run, const MachineRates& rates) {
  const ReadVariation read = [&line](const std::vector<std::string>& assignments) {
    std::vector<std::string> overrides = line.Values("set");
    overrides.insert(overrides.end(), assignments.begin(), assignments.end());
    return ReadRecipe(line.arguments[0], overrides, RecipeUse::kPlan);
  };
  return FindChanges(run, read, rates, kChangesShown);
}

absl::Status RunPlanCommand(const CommandLine& line) {
  ASSIGN_OR_RETURN(const Recipe recipe, ReadRecipe(line.arguments[0], line.Values("set"), RecipeUse::kPlan));
  ASSIGN_OR_RETURN(const PlannedRun run, PlanRun(recipe, ModelParts::kConfiguration));
  const MachineRates rates = LoadOrMeasureRates(MachineRatesPath());
  const TapeTime time = PredictStep(run.model->decoder, *run.engine, run.model->recipe, rates);
  const int64_t tokens = StepTokens(*run.engine, run.model->recipe);
  const absl::Status fits = CheckBudget(run.plan, run.engine_options);
  const std::vector<PolicyPlan> policies = PlanPolicies(run, rates);
  const PlanChanges changes = fits.ok() ? PlanChanges() : ChangesOf(line, run, rates);
  if (FLAGS_json) {
    nlohmann::ordered_json json = RunPlanJson(run.plan);
    json["fits"] = fits.ok();
    json["without"] = run.missing;
    json["seq_len"] = run.model->recipe.data().seq_len();
    json["micro_batch_size"] = run.model->recipe.training().micro_batch_size();
    json["accumulation"] = run.model->recipe.training().accumulation();
    json["parameters"] = run.model->config.ParameterCount();
    json["trained_parameters"] = TrainedParameters(*run.model);
    json["predicted"] = PredictionJson(time, tokens, rates);
    json["activations"] = PoliciesJson(policies);
    AddChangesJson(changes, &json);
    std::printf("%s\n", json.dump(2).c_str());
    return fits;
  }
  std::printf("%s\n", DescribeModel(*run.model).c_str());
  if (!run.missing.empty()) std::printf("%s\n", run.missing.c_str());
  if (!run.auto_sizes.empty()) std::printf("%s\n", run.auto_sizes.c_str());
  std::printf("%s\n%s\n%s", FormatRunPlan(run.plan, kAliveShown).c_str(), FormatPrediction(time, tokens).c_str(),
              FormatPolicies(policies, run.model->config).c_str());
  if (!fits.ok()) std::printf("\n%s", FormatChanges(changes, run.plan).c_str());
  return fits;
}

}  // namespace

Command PlanCommand() {
  Command command;
  command.name = "plan";
  command.summary = "Show what a recipe will take in memory and time, without running it.";
  command.usage = "RECIPE";
  command.description =
      "Plans every byte of the run: by category, at the op where memory is fullest,\n"
      "under each policy of memory.activations, and, with a memory.device_budget, the\n"
      "longest data.seq_len that fits. Predicts the time of a step from operations,\n"
      "bytes and this machine's rates (measured once, kept in the user's cache folder).\n"
      "Reads the data (its longest micro-batch counts) and the base's headers, no\n"
      "weights. model.path may hold a config.json alone or be one, and tokenizer and\n"
      "data may be missing: micro-batches are then full. Above the budget it names the\n"
      "three cheapest changes that fit, each planned, and ends with exit code 3.\n"
      "JSON: tiers.{device,host,disk}.{budget_bytes,planned_bytes,lower_bound_bytes},\n"
      "process_planned_bytes, categories, arena_bytes, micro_batch_tokens, peak.{step,\n"
      "step_index,steps,alive}, fits, without, seq_len,\n"
      "micro_batch_size, accumulation, parameters, trained_parameters,\n"
      "predicted.{step_seconds,step_tokens,tokens_per_second,bound_by,arithmetic_share,\n"
      "flops,bytes,ops,rates}, activations.{POLICY}.{planned_bytes,\n"
      "lower_bound_bytes,step_seconds,longest_seq_len,longest_by_memory}, changes (a\n"
      "list of {recipe,planned_bytes,host_bytes,disk_bytes,step_seconds,\n"
      "tokens_per_second,effect}) and least\n"
      "(the smallest plan that was tried).";
  command.example =
      "  thimble plan recipes/qlora.yaml --set model.path=BASE \\\n"
      "      --set data.train=rows.jsonl --set memory.device_budget=2GiB\n"
      "  thimble plan recipes/qlora.yaml --set model.path=Llama-3.1-70B/config.json";
  command.min_arguments = 1;
  command.max_arguments = 1;
  command.flags = {"json", "set"};
  command.repeated_flags = {"set"};
  command.run = RunPlanCommand;
  return command;
}

}  // namespace thimble
