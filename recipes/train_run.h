// One training run from a recipe: plan, load, train, export, summary.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recipes/session.h"
#include "trainer/engine.h"
#include "trainer/generator.h"
#include "trainer/run_plan.h"

namespace thimble {

// A recipe's model and data with everything planned and nothing allocated: what `plan` shows and `train` runs.
struct PlannedRun {
  std::unique_ptr<ModelSession> model;
  DataSession data;
  EngineOptions engine_options;
  std::unique_ptr<Engine> engine;
  RunPlan plan;
  int64_t sample_context = 0;  // tokens of the sample prompts' caches, 0 without prompts
};
absl::StatusOr<PlannedRun> PlanRun(const recipe::Recipe& recipe);

// "Model: llama, 6 layers, 256 wide, 4096 tokens; 5767168 parameters, 294912 train"
std::string DescribeModel(const ModelSession& model);
int64_t TrainedParameters(const ModelSession& model);

// Trains. With `resume` the recipe is the run folder's own and the run goes on from its latest checkpoint. Progress and
// the summary go to standard error; the run folder holds the rest. Cancelled when interrupted with a checkpoint
// written.
absl::Status TrainRun(const recipe::Recipe& recipe, bool resume);

}  // namespace thimble
