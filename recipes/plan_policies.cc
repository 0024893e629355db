#include "recipes/plan_policies.h"

#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace thimble {
namespace {

constexpr int64_t kShortest = 2;
constexpr int64_t kLongest = int64_t{1} << 24;

}  // namespace

std::string SecondsText(double seconds) {
  if (seconds < 120) return absl::StrFormat("%.3g s", seconds);
  if (seconds < 7200) return absl::StrFormat("%.3g min", seconds / 60);
  return absl::StrFormat("%.3g h", seconds / 3600);
}

std::vector<PolicyCandidate> PolicyCandidates(const EngineOptions& options) {
  constexpr std::pair<SaveAction, SaveAction> kChoices[] = {
      {SaveAction::kKeep, SaveAction::kKeep},
      {SaveAction::kRecompute, SaveAction::kKeep},
      {SaveAction::kOffloadHost, SaveAction::kOffloadHost},
      {SaveAction::kRecompute, SaveAction::kOffloadHost},
      {SaveAction::kOffloadDisk, SaveAction::kOffloadDisk},
      {SaveAction::kRecompute, SaveAction::kOffloadDisk},
  };
  std::vector<PolicyCandidate> candidates;
  for (const auto& [inner, boundary] : kChoices) {
    const bool own = inner == boundary || boundary == SaveAction::kKeep;
    PolicyCandidate& candidate = candidates.emplace_back();
    candidate.name = std::string(NameOf(inner));
    candidate.assignments = {absl::StrCat("memory.activations=", candidate.name)};
    if (!own) {
      candidate.assignments.push_back(absl::StrCat("memory.boundaries=", std::string(NameOf(boundary))));
      absl::StrAppend(&candidate.name, "/", std::string(NameOf(boundary)));
    }
    candidate.options = options;
    candidate.options.activations = SavePlan(LayerSavePlan{inner, boundary});
    candidate.options.activations.SetCompression(options.activations.compression());
  }
  return candidates;
}

int64_t LargestThatFits(int64_t low, int64_t high, int64_t budget, const std::function<int64_t(int64_t)>& bytes) {
  int64_t low_bytes = bytes(low);
  if (low_bytes > budget) return 0;
  int64_t high_bytes = bytes(high);
  if (high_bytes <= budget) return high;
  for (int round = 0; high - low > 1; ++round) {
    double share = static_cast<double>(budget - low_bytes) / static_cast<double>(high_bytes - low_bytes);
    if (round % 3 == 2) share = 0.5;  // so that a bent line takes no longer than plain bisection thrice
    const int64_t guess = low + static_cast<int64_t>(share * static_cast<double>(high - low));
    const int64_t middle = std::clamp(guess, low + 1, high - 1);
    const int64_t middle_bytes = bytes(middle);
    if (middle_bytes <= budget) {
      low = middle;
      low_bytes = middle_bytes;
    } else {
      high = middle;
      high_bytes = middle_bytes;
    }
  }
  return low;
}

int64_t LargestNear(int64_t start, int64_t most, int64_t budget, const std::function<int64_t(int64_t)>& bytes) {
  constexpr int kMostRounds = 40;
  constexpr double kShare = 0.99, kTarget = 0.995;  // of the budget: near enough, and aimed at
  struct Point {
    int64_t size = 0, bytes = 0;
  };
  Point low = {kShortest, bytes(kShortest)}, before = low;
  if (low.bytes > budget) return 0;
  Point high = {most + 1, 0};  // bytes 0: not known
  int64_t guess = std::clamp<int64_t>(start, kShortest + 1, most);
  for (int round = 0; round < kMostRounds; ++round) {
    const Point found = {guess, bytes(guess)};
    if (found.bytes <= budget) before = low;
    (found.bytes <= budget ? low : high) = found;
    const bool near = static_cast<double>(low.bytes) >= kShare * static_cast<double>(budget);
    if (near || static_cast<double>(high.size - 1) * kShare <= static_cast<double>(low.size)) break;
    // On the line between what fits and what does not, or on from what fits; every third time in the middle, so that a
    // bent line takes no longer than plain bisection thrice.
    const Point& other = high.bytes > 0 ? high : before;
    const double slope = static_cast<double>(other.bytes - low.bytes) / static_cast<double>(other.size - low.size);
    double next = static_cast<double>(low.size + high.size) / 2;
    if (slope > 0 && round % 3 != 2) {
      next = static_cast<double>(low.size) +
             (kTarget * static_cast<double>(budget) - static_cast<double>(low.bytes)) / slope;
    }
    guess =
        static_cast<int64_t>(std::clamp(next, static_cast<double>(low.size + 1), static_cast<double>(high.size - 1)));
  }
  return low.size;
}

int64_t LongestSequence(const Decoder& decoder, Store* store, const EngineOptions& options, const RunPlan& plan,
                        int64_t micro_batch_size, const Engine* known) {
  const auto bytes_of = [&](const Engine& engine) {
    // The other tiers on the device's scale: what fills its budget most decides.
    const auto scaled = [&plan](const TierUse& tier, int64_t bytes) {
      if (tier.budget_bytes == 0) return int64_t{0};
      return static_cast<int64_t>(static_cast<double>(bytes) / static_cast<double>(tier.budget_bytes) *
                                  static_cast<double>(plan.budget_bytes));
    };
    const int64_t host = engine.tier_bytes(Placement::kHost) + store->TierBytes(/*host=*/true);
    const int64_t disk = engine.tier_bytes(Placement::kDisk) + store->TierBytes(/*host=*/false);
    return std::max({plan.planned_bytes - plan.arena_bytes + engine.arena_bytes(), scaled(plan.host, host),
                     scaled(plan.disk, disk)});
  };
  const auto bytes = [&](int64_t seq_len) {
    EngineOptions longer = options;
    longer.max_tokens = seq_len * micro_batch_size;
    if (known != nullptr && longer.max_tokens == options.max_tokens) return bytes_of(*known);
    return bytes_of(Engine(&decoder, store, longer));
  };
  const bool in_tiles = options.sequence_tile > 0 || options.mlp_tile > 0;
  if (!in_tiles) return LargestThatFits(kShortest, kLongest, plan.budget_bytes, bytes);
  return LargestNear(options.max_tokens / micro_batch_size, kLongest, plan.budget_bytes, bytes);
}

std::vector<PolicyPlan> PlanPolicies(const PlannedRun& run, const MachineRates& rates) {
  std::vector<PolicyPlan> plans;
  ModelSession& model = *run.model;
  EngineOptions whole = run.engine_options;
  whole.sequence_tile = 0;
  whole.idle_tier = Placement::kActivation;
  const bool whole_too =
      run.engine_options.sequence_tile == 0 && run.engine_options.idle_tier == Placement::kActivation;
  std::vector<PolicyCandidate> candidates = PolicyCandidates(whole);
  if (!whole_too) candidates.push_back({"in tiles", {}, run.engine_options});
  for (const PolicyCandidate& candidate : candidates) {
    PolicyPlan plan;
    plan.name = candidate.name;
    plan.chosen = candidate.options.activations == run.engine_options.activations &&
                  candidate.options.sequence_tile == run.engine_options.sequence_tile &&
                  candidate.options.idle_tier == run.engine_options.idle_tier;
    std::unique_ptr<Engine> planned;
    if (!plan.chosen) planned = std::make_unique<Engine>(&model.decoder, &model.store, candidate.options);
    const Engine& engine = plan.chosen ? *run.engine : *planned;
    const int64_t besides_arena = run.plan.planned_bytes - run.plan.arena_bytes;
    plan.planned_bytes = besides_arena + engine.arena_bytes();
    plan.lower_bound_bytes = besides_arena + engine.arena_lower_bound_bytes();
    plan.step_seconds = PredictStep(model.decoder, engine, model.recipe, rates).seconds;
    if (run.plan.budget_bytes > 0) {
      plan.longest_by_memory = LongestSequence(model.decoder, &model.store, candidate.options, run.plan,
                                               model.recipe.training().micro_batch_size(), &engine);
      const int64_t context = model.config.max_position > 0 ? model.config.max_position : kLongest;
      plan.longest_seq_len = std::min(plan.longest_by_memory, context);
      plan.reaches_context = plan.longest_by_memory >= context;
    }
    plans.push_back(plan);
  }
  return plans;
}

std::string FormatPolicies(const std::vector<PolicyPlan>& policies, const DecoderConfig& config) {
  std::string text = "memory.activations\n";
  for (const PolicyPlan& plan : policies) {
    absl::StrAppendFormat(&text, "  %-14s %16d bytes %12s%s\n", plan.name, plan.planned_bytes,
                          MiBText(plan.planned_bytes), plan.chosen ? "  (this recipe)" : "");
    absl::StrAppend(&text, "    ", SecondsText(plan.step_seconds), " a step predicted\n");
    if (plan.longest_seq_len == 0) {
      absl::StrAppend(&text, "    no data.seq_len fits the budget\n");
    } else if (plan.longest_seq_len > 0) {
      absl::StrAppendFormat(&text, "    data.seq_len up to %d fits the budget%s\n", plan.longest_seq_len,
                            plan.reaches_context ? ", the model's whole context" : "");
      if (plan.longest_by_memory > config.max_position && config.max_position > 0) {
        absl::StrAppendFormat(&text, "    (memory alone would allow %s%d)\n",
                              plan.longest_by_memory == kLongest ? "at least " : "", plan.longest_by_memory);
      }
    }
  }
  return text;
}

nlohmann::ordered_json PoliciesJson(const std::vector<PolicyPlan>& policies) {
  nlohmann::ordered_json json;
  for (const PolicyPlan& plan : policies) {
    nlohmann::ordered_json& entry = json[plan.name];
    entry["planned_bytes"] = plan.planned_bytes;
    entry["lower_bound_bytes"] = plan.lower_bound_bytes;
    entry["step_seconds"] = plan.step_seconds;
    entry["longest_seq_len"] = nullptr;
    entry["longest_by_memory"] = nullptr;
    if (plan.longest_seq_len < 0) continue;
    entry["longest_seq_len"] = plan.longest_seq_len;
    entry["longest_by_memory"] = plan.longest_by_memory;
  }
  return json;
}

}  // namespace thimble
