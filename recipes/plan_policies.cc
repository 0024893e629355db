// Both policies planned, and a bisection over sequence lengths.
#include "recipes/plan_policies.h"

#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thimble {
namespace {

const char* NameOf(SavePolicy policy) { return policy == SavePolicy::kKeep ? "keep" : "recompute"; }

// Bytes of the device tier with micro-batches of `tokens`.
int64_t PlannedBytes(PlannedRun* run, EngineOptions options, int64_t tokens) {
  options.max_tokens = tokens;
  const Engine engine(&run->model->decoder, &run->model->store, options);
  return run->plan.planned_bytes - run->plan.arena_bytes + engine.arena_bytes();
}

void FindLongestSequence(PlannedRun* run, const EngineOptions& options, PolicyPlan* plan) {
  const int64_t budget = run->plan.budget_bytes;
  const int64_t batch = run->model->recipe.training().micro_batch_size();
  const auto fits = [&](int64_t seq_len) { return PlannedBytes(run, options, seq_len * batch) <= budget; };
  constexpr int64_t kShortest = 2;
  constexpr int64_t kLongest = int64_t{1} << 20;  // where the configuration states no context
  const int64_t context = run->model->decoder.config.max_position;
  int64_t above = context >= kShortest ? context : kLongest;
  plan->longest_seq_len = 0;
  if (!fits(kShortest)) return;
  if (fits(above)) {
    plan->longest_seq_len = above;
    plan->reaches_context = true;
    return;
  }
  int64_t below = kShortest;
  while (above - below > 1) {
    const int64_t middle = below + (above - below) / 2;
    (fits(middle) ? below : above) = middle;
  }
  plan->longest_seq_len = below;
}

}  // namespace

std::vector<PolicyPlan> PlanPolicies(PlannedRun* run) {
  std::vector<PolicyPlan> plans;
  for (SavePolicy policy : {SavePolicy::kKeep, SavePolicy::kRecompute}) {
    EngineOptions options = run->engine_options;
    PolicyPlan plan;
    plan.policy = policy;
    plan.chosen = policy == options.activations;
    options.activations = policy;
    const Engine engine(&run->model->decoder, &run->model->store, options);
    const int64_t besides_arena = run->plan.planned_bytes - run->plan.arena_bytes;
    plan.planned_bytes = besides_arena + engine.arena_bytes();
    plan.lower_bound_bytes = besides_arena + engine.arena_lower_bound_bytes();
    if (run->plan.budget_bytes > 0) FindLongestSequence(run, options, &plan);
    plans.push_back(plan);
  }
  return plans;
}

std::string FormatPolicies(const std::vector<PolicyPlan>& policies) {
  std::string text = "memory.activations\n";
  for (const PolicyPlan& plan : policies) {
    absl::StrAppendFormat(&text, "  %-14s %16d bytes %12s%s\n", NameOf(plan.policy), plan.planned_bytes,
                          MiBText(plan.planned_bytes), plan.chosen ? "  (this recipe)" : "");
    if (plan.longest_seq_len == 0) {
      absl::StrAppend(&text, "    no data.seq_len fits the budget\n");
    } else if (plan.longest_seq_len > 0) {
      absl::StrAppendFormat(&text, "    data.seq_len up to %d fits the budget%s\n", plan.longest_seq_len,
                            plan.reaches_context ? ", the model's whole context" : "");
    }
  }
  return text;
}

nlohmann::ordered_json PoliciesJson(const std::vector<PolicyPlan>& policies) {
  nlohmann::ordered_json json;
  for (const PolicyPlan& plan : policies) {
    nlohmann::ordered_json& entry = json[NameOf(plan.policy)];
    entry["planned_bytes"] = plan.planned_bytes;
    entry["lower_bound_bytes"] = plan.lower_bound_bytes;
    entry["longest_seq_len"] = nullptr;
    if (plan.longest_seq_len >= 0) entry["longest_seq_len"] = plan.longest_seq_len;
  }
  return json;
}

}  // namespace thimble
