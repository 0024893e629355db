// Where a plan is above its budget: which changes of the recipe would make it fit, each of them planned for real.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "recipes/planned_run.h"

namespace thimble {

// What a change does to the result of training.
enum class ChangeEffect : uint8_t {
  kSameBits,   // nothing
  kSameBatch,  // the same rows a step, summed in another order
  kRounding,   // the same rows and the same model, moments of fewer bits
  kOther,      // another model, other rows or weights of fewer bits
};

struct PlanChange {
  std::vector<std::string> assignments;  // "memory.activations=recompute", as for --set
  ChangeEffect effect = ChangeEffect::kSameBits;
  int64_t planned_bytes = 0;  // of the device tier
  int64_t host_bytes = 0;
  int64_t disk_bytes = 0;
  double fullness = 0;       // of the budget that is filled most; 1: exactly full
  double step_seconds = 0;   // predicted
  double token_seconds = 0;  // the same for each token of a step
};

struct PlanChanges {
  std::vector<PlanChange> cheapest;  // that fit: least effect first, then least predicted time a token
  PlanChange least;                  // of all that were planned the one nearest to its budgets, whether it fits or not
};

// The recipe with some more assignments.
using ReadVariation = std::function<absl::StatusOr<recipe::Recipe>(const std::vector<std::string>& assignments)>;

// At most `count` changes, each as mild as fits and none that contains another: single ones, pairs of them, and where
// those are too few, all together less what is not needed. Plans a few dozen variations.
PlanChanges FindChanges(const PlannedRun& run, const ReadVariation& read, const MachineRates& rates, size_t count);

// Recipe lines with what they lead to, at most 80 columns.
std::string FormatChanges(const PlanChanges& changes, const RunPlan& plan);
// changes: list of {recipe: {key: value}, planned_bytes, host_bytes, disk_bytes, step_seconds, tokens_per_second,
// effect: same_bits | same_batch | rounding | other}; least: the same for the change that comes nearest to the budgets.
void AddChangesJson(const PlanChanges& changes, nlohmann::ordered_json* json);

}  // namespace thimble
