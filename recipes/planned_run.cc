#include "recipes/planned_run.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "recipes/auto_sizes.h"
#include "recipes/choose_save_plan.h"
#include "recipes/recipe_options.h"
#include "recipes/save_plan_options.h"
#include "trainer/optimizer_state.h"
#include "trainer/process_memory.h"

namespace thimble {
namespace {

using recipe::Recipe;

// Tokens that the longest sample prompt and its answer take.
absl::StatusOr<int64_t> SampleContext(const Recipe& recipe, const DataSession& data) {
  int64_t context = 0;
  for (const std::string& prompt : recipe.training().sample_prompts()) {
    int64_t tokens = static_cast<int64_t>(prompt.size());  // a token is a byte at least
    if (data.encoder != nullptr) {
      ASSIGN_OR_RETURN(const std::vector<int32_t> ids, data.encoder->EncodePrompt({{"user", prompt}}, data.train.form));
      tokens = static_cast<int64_t>(ids.size());
    }
    context = std::max(context, tokens + recipe.training().sample_tokens());
  }
  return context;
}

absl::StatusOr<EngineOptions> OptionsOf(const Recipe& recipe, const Decoder& decoder, int64_t max_tokens) {
  EngineOptions options = EngineOptionsOf(recipe);
  ASSIGN_OR_RETURN(options.activations, SavePlanOf(recipe.memory(), decoder.config.num_layers));
  options.loss.compute = decoder.compute;
  options.distillation.compute = decoder.compute;
  options.max_tokens = max_tokens;
  return options;
}

// What the plan says of activations, beside the policy: "; tiles of 1024; idle on host".
std::string TilesText(const EngineOptions& options) {
  std::string text;
  if (options.sequence_tile > 0) absl::StrAppend(&text, "; tiles of ", options.sequence_tile);
  if (options.idle_tier == Placement::kHost) absl::StrAppend(&text, "; idle on host");
  if (options.idle_tier == Placement::kDisk) absl::StrAppend(&text, "; idle on disk");
  return text;
}

// Declares what sample prompts take and plans everything.
RunPlan PlanOf(const Recipe& recipe, const Decoder& decoder, int64_t sample_context, EngineOptions* options,
               Store* store, std::unique_ptr<Engine>* engine) {
  int64_t workspace = 0;
  if (sample_context > 0) {
    Generator::DeclareCaches(decoder, sample_context, store);
    workspace = Generator::WorkspaceBytes(decoder, store);
  }
  DeclareOptimizerState(options->optimizer, store);
  const TierBudgets budgets = {recipe.memory().device_budget(), recipe.memory().host_budget(),
                               recipe.memory().disk_budget()};
  std::string chosen;
  if (recipe.memory().activations() == recipe::Memory::ACTIVATIONS_AUTO) {
    const ChosenSavePlan choice =
        ChooseSavePlan(recipe, decoder, store, *options, budgets, store->ResidentBytes() + workspace,
                       LoadOrMeasureRates(MachineRatesPath()));
    *options = choice.options;
    chosen = absl::StrFormat(" (auto: %.0f%% of the predicted time of keep)",
                             100 * choice.step_seconds / std::max(choice.keep_step_seconds, 1e-9));
  }
  *engine = std::make_unique<Engine>(&decoder, store, *options);
  options->update = (*engine)->shared_update();
  RunPlan plan = MakeRunPlan(*store, **engine, budgets, workspace, ResidentBytes());
  plan.activations = options->activations.Text(decoder.config.num_layers) + TilesText(*options) + chosen;
  plan.process_bytes = std::max(plan.process_bytes, PeakResidentBytes());
  return plan;
}

absl::StatusOr<int64_t> MaxTokens(const PlannedRun& run, const Recipe& recipe) {
  if (!run.has_data()) return recipe.data().seq_len() * recipe.training().micro_batch_size();
  return LongestMicroBatch(recipe, run.data);
}

std::string Missing(const ModelSession& model) {
  std::vector<std::string> missing;
  if (!model.bare_config_path.empty()) missing.push_back("weights");
  if (model.tokenizer == nullptr) missing.push_back("tokenizer");
  const bool no_rows = model.recipe.data().train_size() == 0;
  if (no_rows) missing.push_back("data");
  if (missing.empty()) return "";
  std::string text = absl::StrCat("Planned without ", missing[0]);
  for (size_t i = 1; i < missing.size(); ++i) {
    absl::StrAppend(&text, i + 1 == missing.size() ? " and " : ", ", missing[i]);
  }
  if (!no_rows && model.tokenizer != nullptr) return text;
  return absl::StrFormat("%s: micro-batches of data.seq_len %d x\ntraining.micro_batch_size %d", text,
                         model.recipe.data().seq_len(), model.recipe.training().micro_batch_size());
}

}  // namespace

std::string DescribeModel(const ModelSession& model) {
  const DecoderConfig& c = model.decoder.config;
  return absl::StrFormat("Model: %s, %d layers, %d wide, %d tokens,\n  %d parameters, of which %d train", c.model_type,
                         c.num_layers, c.hidden_dim, c.vocab_size, c.ParameterCount(), TrainedParameters(model));
}

int64_t TrainedParameters(const ModelSession& model) {
  int64_t trained = 0;
  for (StoreId id : model.store.Trainable()) trained += model.store.entry(id).rows * model.store.entry(id).cols;
  return trained;
}

MeasuredBytes Measure(const PlannedRun& run, const Generator* generator) {
  const Store& store = run.model->store;
  MeasuredBytes measured;
  measured.device = store.HeldBytes() + run.engine->arena_high_water_bytes();
  if (generator != nullptr) measured.device += generator->HeldBytes();
  const auto add = [](const Tier* tier, int64_t* bytes) { *bytes += tier == nullptr ? 0 : tier->high_water_bytes(); };
  add(run.engine->tier(Placement::kHost), &measured.host);
  add(run.engine->tier(Placement::kDisk), &measured.disk);
  add(store.weight_tier(), store.streams_from_host() ? &measured.host : &measured.disk);
  add(store.state_tier(), store.state_on_host() ? &measured.host : &measured.disk);
  return measured;
}

absl::StatusOr<PlannedRun> PlanRun(const Recipe& recipe, ModelParts parts) {
  PlannedRun run;
  ASSIGN_OR_RETURN(run.model, DeclareModel(recipe, parts));
  Recipe& resolved = run.model->recipe;
  const bool has_auto = HasAutoSizes(resolved);
  if (has_auto) SetLargestSizes(run.model->config, &resolved);
  if (run.model->tokenizer != nullptr && recipe.data().train_size() > 0) {
    ASSIGN_OR_RETURN(run.data, PrepareData(*run.model));
  }
  ASSIGN_OR_RETURN(run.sample_context, SampleContext(recipe, run.data));
  if (has_auto) {
    ASSIGN_OR_RETURN(run.auto_sizes, ChooseAutoSizes(run, recipe, &resolved));
    if (run.has_data()) RETURN_IF_ERROR(Repack(resolved, &run.data));
  }
  run.missing = Missing(*run.model);
  ASSIGN_OR_RETURN(const int64_t max_tokens, MaxTokens(run, resolved));
  ASSIGN_OR_RETURN(run.engine_options, OptionsOf(resolved, run.model->decoder, max_tokens));
  run.plan =
      PlanOf(resolved, run.model->decoder, run.sample_context, &run.engine_options, &run.model->store, &run.engine);
  return run;
}

absl::StatusOr<std::unique_ptr<Variation>> PlanVariation(const PlannedRun& run, const Recipe& recipe) {
  auto variation = std::make_unique<Variation>();
  variation->recipe = recipe;
  ASSIGN_OR_RETURN(variation->decoder,
                   DeclareWeights(*run.model, recipe, run.model->decoder.compute, &variation->store));
  ASSIGN_OR_RETURN(const int64_t max_tokens, MaxTokens(run, recipe));
  ASSIGN_OR_RETURN(variation->engine_options, OptionsOf(recipe, variation->decoder, max_tokens));
  variation->plan = PlanOf(recipe, variation->decoder, run.sample_context, &variation->engine_options,
                           &variation->store, &variation->engine);
  return variation;
}

TapeTime PredictStep(const Decoder& decoder, const Engine& engine, const Recipe& recipe, const MachineRates& rates) {
  CostContext context;
  context.sequence_tokens = recipe.data().seq_len();
  context.windows = decoder.config.windows;
  context.compute = decoder.compute;
  TapeTime time;
  time.Add(PredictTime(engine.largest().tape, context, rates), static_cast<double>(recipe.training().accumulation()));
  if (engine.update() != nullptr) time.Add(PredictTime(engine.update()->tape, context, rates), 1);
  return time;
}

int64_t StepTokens(const Engine& engine, const Recipe& recipe) {
  const PlannedTape& micro_step = engine.largest();
  return micro_step.tape.value(micro_step.inputs.ids).cols * recipe.training().accumulation();
}

}  // namespace thimble
