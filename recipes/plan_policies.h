// What a planned run would take with its activations kept or computed again, and how long its sequences could be.
#pragma once

#include <cstdint>
#include <vector>

#include "nlohmann/json.hpp"
#include "recipes/train_run.h"

namespace thimble {

struct PolicyPlan {
  SavePolicy policy = SavePolicy::kKeep;
  bool chosen = false;  // by the recipe
  int64_t planned_bytes = 0;
  int64_t lower_bound_bytes = 0;
  // The longest data.seq_len whose full micro-batches fit the budget, at most the model's own context (then
  // `reaches_context`); 0 where not even two tokens fit, -1 without a budget.
  int64_t longest_seq_len = -1;
  bool reaches_context = false;
};

// keep and recompute, in this order. Plans only: nothing is allocated.
std::vector<PolicyPlan> PlanPolicies(PlannedRun* run);

// Two lines of at most 80 columns.
std::string FormatPolicies(const std::vector<PolicyPlan>& policies);
// keep and recompute, each {planned_bytes, lower_bound_bytes, longest_seq_len}; the last is null without a budget.
nlohmann::ordered_json PoliciesJson(const std::vector<PolicyPlan>& policies);

}  // namespace thimble
