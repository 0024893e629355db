// What a planned run would take under each policy for activations, and how long its sequences could be.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "nlohmann/json.hpp"
#include "recipes/planned_run.h"

namespace thimble {

// One way to hold what backward needs, as a value of memory.activations.
struct PolicyCandidate {
  std::string name;                      // "recompute", "recompute/offload_host"
  std::vector<std::string> assignments;  // "memory.activations=recompute", as for --set
  EngineOptions options;
};
// All policies on top of `options`, in the order of the recipe's values.
std::vector<PolicyCandidate> PolicyCandidates(const EngineOptions& options);

struct PolicyPlan {
  std::string name;
  bool chosen = false;  // by the recipe
  int64_t planned_bytes = 0;
  int64_t lower_bound_bytes = 0;
  double step_seconds = 0;  // predicted
  // The longest data.seq_len whose full micro-batches fit the budget; 0 where not even two tokens fit, -1 without a
  // budget. `longest_seq_len` is at most the model's own context (then `reaches_context`), longest_by_memory is not.
  int64_t longest_seq_len = -1;
  int64_t longest_by_memory = -1;
  bool reaches_context = false;
};

// Plans only: nothing is allocated.
std::vector<PolicyPlan> PlanPolicies(const PlannedRun& run, const MachineRates& rates);

// "1.23 s", "12.3 min" or "4.76 h".
std::string SecondsText(double seconds);
// A few lines a policy, of at most 80 columns.
std::string FormatPolicies(const std::vector<PolicyPlan>& policies, const DecoderConfig& config);
// By policy {planned_bytes, lower_bound_bytes, step_seconds, longest_seq_len, longest_by_memory}; the last two are null
// without a budget.
nlohmann::ordered_json PoliciesJson(const std::vector<PolicyPlan>& policies);

// The largest n in [low, high] with bytes(n) <= budget, by bisection with interpolated points, as bytes is close to a
// straight line: bytes(n + 1) is above the budget unless n is `high`. 0 when bytes(low) is above it.
int64_t LargestThatFits(int64_t low, int64_t high, int64_t budget, const std::function<int64_t(int64_t)>& bytes);
// A size of at most `most` whose bytes are within the budget and, where the search finds such a size, above 99% of it
// (or a hundredth larger ones are above it), beginning at `start`: for plans that take seconds each. 0 where none fits.
int64_t LargestNear(int64_t start, int64_t most, int64_t budget, const std::function<int64_t(int64_t)>& bytes);
// That of data.seq_len for a variation of a run, at most 2^24; by LargestNear where sequences run in tiles. `known` is
// the plan of options.max_tokens, where there is one.
int64_t LongestSequence(const Decoder& decoder, Store* store, const EngineOptions& options, const RunPlan& plan,
                        int64_t micro_batch_size, const Engine* known = nullptr);

}  // namespace thimble
