// A recipe planned: its model and data with every byte counted and nothing allocated. What `plan` shows and `train`
// runs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "recipes/session.h"
#include "trainer/engine.h"
#include "trainer/generator.h"
#include "trainer/machine_rates.h"
#include "trainer/run_plan.h"
#include "trainer/step_cost.h"

namespace thimble {

struct PlannedRun {
  std::unique_ptr<ModelSession> model;
  DataSession data;  // empty where the plan was made without
  EngineOptions engine_options;
  std::unique_ptr<Engine> engine;
  RunPlan plan;
  int64_t sample_context = 0;  // tokens of the sample prompts' caches, 0 without prompts
  std::string auto_sizes;      // what `auto` sizes came to, one line; empty without
  std::string missing;         // what the plan was made without, one line; empty when everything was there

  bool has_data() const { return data.train_stream != nullptr; }
};

// Bytes of each tier that a run has really taken so far.
struct MeasuredBytes {
  int64_t device = 0;
  int64_t host = 0;
  int64_t disk = 0;
};
// `generator` answers sample prompts; null without.
MeasuredBytes Measure(const PlannedRun& run, const Generator* generator);

// Sizes that the recipe leaves to the plan (`auto`) are chosen first and set in model->recipe.
// With ModelParts::kConfiguration the base may be a config.json, and data and tokenizer may be missing. Micro-batches
// are then data.seq_len times training.micro_batch_size tokens long.
absl::StatusOr<PlannedRun> PlanRun(const recipe::Recipe& recipe, ModelParts parts = ModelParts::kAll);

// Another recipe on the same base and rows, planned.
struct Variation {
  recipe::Recipe recipe;
  Store store;
  Decoder decoder;
  EngineOptions engine_options;
  std::unique_ptr<Engine> engine;
  RunPlan plan;
};
// Equal to the plan of PlanRun(recipe). InvalidArgument where the rows cannot be packed as the recipe says.
absl::StatusOr<std::unique_ptr<Variation>> PlanVariation(const PlannedRun& run, const recipe::Recipe& recipe);

// Time of one optimiser step: all micro-batches of an accumulation, as long as the longest, and the update.
TapeTime PredictStep(const Decoder& decoder, const Engine& engine, const recipe::Recipe& recipe,
                     const MachineRates& rates);
// Tokens of such a step.
int64_t StepTokens(const Engine& engine, const recipe::Recipe& recipe);

// "Model: llama, 6 layers, 256 wide, 4096 tokens; 5767168 parameters, 294912 train"
std::string DescribeModel(const ModelSession& model);
int64_t TrainedParameters(const ModelSession& model);

}  // namespace thimble
