// data.seq_len: auto and training.micro_batch_size: auto. The sizes that fill the budgets.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "recipes/planned_run.h"

namespace thimble {

bool HasAutoSizes(const recipe::Recipe& recipe);
// The largest sequence that `auto` may become, so that rows are tokenised and no row is too long for it yet, with one
// sequence at once.
void SetLargestSizes(const DecoderConfig& config, recipe::Recipe* recipe);
// Sets in `resolved` what fits the budgets of `recipe`, planned on the model and rows of `run`: first the longest
// data.seq_len, a multiple of 64 up to the model's context, with one sequence at once where both are auto; then of the
// divisors of training.accumulation the micro_batch_size with the most predicted tokens a second, and the accumulation
// that leaves the same rows a step. Where nothing fits these are the smallest, which CheckBudget refuses. Returns what
// was chosen, one line.
absl::StatusOr<std::string> ChooseAutoSizes(const PlannedRun& run, const recipe::Recipe& recipe,
                                            recipe::Recipe* resolved);
// Sets sizes that are auto in `recipe` to those of `like`.
void CopyAutoSizes(const recipe::Recipe& like, recipe::Recipe* recipe);

}  // namespace thimble
