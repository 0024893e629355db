// One training run from a recipe: plan, load, train, export, summary.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recipes/plan_changes.h"
#include "recipes/planned_run.h"

namespace thimble {

// Trains. With `resume` the recipe is the run folder's own and the run goes on from its latest checkpoint. Progress and
// the summary go to standard error; the run folder holds the rest. Cancelled when interrupted with a checkpoint
// written. Where the plan is above a budget, the changes that would make it fit are shown if `read` reads variations of
// the recipe.
absl::Status TrainRun(const recipe::Recipe& recipe, bool resume, const ReadVariation& read = nullptr);

}  // namespace thimble
