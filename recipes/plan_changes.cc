#include "recipes/plan_changes.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "recipes/auto_sizes.h"
#include "recipes/change_families.h"
#include "recipes/plan_policies.h"
#include "recipes/recipe_reader.h"
#include "recipes/text_layout.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

constexpr int64_t kShortestSequence = 16;
constexpr int64_t kMostShortening = 16;  // a sequence cut to less is another task
// Steps of all tapes that are planned before the search ends, so that the largest models take seconds. Not a time: a
// recipe has the same changes on every machine.
constexpr int64_t kMostSteps = 300000;

double FullnessOf(const RunPlan& plan) {
  const auto share = [](int64_t bytes, int64_t budget) {
    return budget == 0 ? 0 : static_cast<double>(bytes) / static_cast<double>(budget);
  };
  return std::max({share(plan.planned_bytes, plan.budget_bytes), share(plan.host.planned_bytes, plan.host.budget_bytes),
                   share(plan.disk.planned_bytes, plan.disk.budget_bytes)});
}

std::string KeyOf(const std::string& assignment) { return assignment.substr(0, assignment.find('=')); }

// Both, what `base` sets as it sets it.
Assignments Joined(const Assignments& base, const Assignments& more) {
  Assignments all = base;
  for (const std::string& assignment : more) {
    const bool set = std::any_of(base.begin(), base.end(),
                                 [&](const std::string& other) { return KeyOf(other) == KeyOf(assignment); });
    if (!set) all.push_back(assignment);
  }
  return all;
}

class Search {
 public:
  Search(const PlannedRun& run, const ReadVariation& read, const MachineRates& rates)
      : run_(run), read_(read), rates_(rates), families_(FamiliesOf(run)) {}

  PlanChanges Run(size_t count) {
    std::vector<bool> fits_alone;
    for (const Family& family : families_) fits_alone.push_back(Mildest({}, ChangeEffect::kSameBits, family));
    // Families come mildest first, so that mild pairs do.
    for (size_t j = 1; j < families_.size(); ++j) {
      for (size_t i = 0; i < j && !fits_alone[j] && found_.size() < count && steps_ < kMostSteps; ++i) {
        if (!fits_alone[i]) Mildest(families_[i].settings.back(), families_[i].effect, families_[j]);
      }
    }
    if (found_.empty()) Everything();
    std::stable_sort(found_.begin(), found_.end(), [](const PlanChange& a, const PlanChange& b) {
      return a.effect != b.effect ? a.effect < b.effect : a.token_seconds < b.token_seconds;
    });
    if (found_.size() > count) found_.resize(count);
    return {std::move(found_), std::move(least_)};
  }

 private:
  // Plans a variation; empty where the recipe refuses it or its rows cannot be packed.
  std::unique_ptr<Variation> Plan(const Assignments& assignments) const {
    absl::StatusOr<Recipe> recipe = read_(assignments);
    if (!recipe.ok()) return nullptr;
    CopyAutoSizes(run_.model->recipe, &*recipe);
    absl::StatusOr<std::unique_ptr<Variation>> variation = PlanVariation(run_, *recipe);
    return variation.ok() ? *std::move(variation) : nullptr;
  }

  static int64_t StepsOf(const Variation& variation) {
    const PlannedTape* update = variation.engine->update();
    return static_cast<int64_t>(variation.engine->largest().tape.steps().size() +
                                (update == nullptr ? 0 : update->tape.steps().size()));
  }

  PlanChange Describe(const Assignments& assignments, ChangeEffect effect, const Variation& variation) const {
    PlanChange change;
    change.assignments = assignments;
    change.effect = effect;
    change.planned_bytes = variation.plan.planned_bytes;
    change.host_bytes = variation.plan.host.planned_bytes;
    change.disk_bytes = variation.plan.disk.planned_bytes;
    change.fullness = FullnessOf(variation.plan);
    change.step_seconds = PredictStep(variation.decoder, *variation.engine, variation.recipe, rates_).seconds;
    change.token_seconds = change.step_seconds / static_cast<double>(StepTokens(*variation.engine, variation.recipe));
    return change;
  }

  // Plans `assignments` and counts them among the smallest so far; the change where it fits.
  std::optional<PlanChange> Try(const Assignments& assignments, ChangeEffect effect) {
    const std::unique_ptr<Variation> variation = Plan(assignments);
    if (variation == nullptr) return std::nullopt;
    steps_ += StepsOf(*variation);
    PlanChange change = Describe(assignments, effect, *variation);
    if (least_.planned_bytes == 0 || change.fullness < least_.fullness) least_ = change;
    if (!CheckBudget(variation->plan, variation->engine_options).ok()) return std::nullopt;
    return change;
  }

  // The longest data.seq_len that fits beside `base`.
  Assignments WithSequence(const Assignments& base, bool shortest) {
    const int64_t now = run_.model->recipe.data().seq_len();
    int64_t length = std::min(now, std::max(kShortestSequence, now / kMostShortening));
    if (!shortest) {
      const std::unique_ptr<Variation> variation = Plan(base);
      if (variation == nullptr) return {};
      steps_ += 8 * StepsOf(*variation);  // about so many lengths are tried
      const int64_t longest =
          std::min(now, LongestSequence(variation->decoder, &variation->store, variation->engine_options,
                                        variation->plan, variation->recipe.training().micro_batch_size()));
      if (longest < length) return {};
      length = longest > 128 ? longest / 64 * 64 : longest;
    }
    Assignments assignments = base;
    assignments.push_back(absl::StrCat("data.seq_len=", length));
    return assignments;
  }

  // Adds the mildest setting of a family that fits on top of `base`; false where none does.
  bool Mildest(const Assignments& base, ChangeEffect base_effect, const Family& family) {
    const ChangeEffect effect = std::max(base_effect, family.effect);
    if (family.longest_sequence) {
      const Assignments assignments = WithSequence(base, /*shortest=*/false);
      const std::optional<PlanChange> change = assignments.empty() ? std::nullopt : Try(assignments, effect);
      if (change.has_value()) found_.push_back(*change);
      return change.has_value();
    }
    for (const Assignments& setting : family.settings) {
      const Assignments assignments = Joined(base, setting);
      const std::optional<PlanChange> change = Try(assignments, effect);
      if (!change.has_value()) continue;
      found_.push_back(*change);
      return true;
    }
    return false;
  }

  // All families at their strongest, less those that it fits without, with the longest sequence at the end.
  void Everything() {
    std::vector<const Family*> used;
    for (const Family& family : families_) used.push_back(&family);
    std::optional<PlanChange> smallest = Try(Strongest(used), EffectOf(used));
    if (!smallest.has_value()) return;
    for (size_t i = used.size(); i-- > 0;) {
      std::vector<const Family*> fewer;
      for (const Family* family : used) {
        if (family != used[i]) fewer.push_back(family);
      }
      const std::optional<PlanChange> change = Try(Strongest(fewer), EffectOf(fewer));
      if (!change.has_value()) continue;
      smallest = change;
      used = std::move(fewer);
    }
    const bool shortens = !used.empty() && used.back()->longest_sequence;
    if (shortens) {
      used.pop_back();
      const Assignments longer = WithSequence(Strongest(used), /*shortest=*/false);
      const std::optional<PlanChange> change = longer.empty() ? std::nullopt : Try(longer, ChangeEffect::kOther);
      if (change.has_value()) smallest = change;
    }
    found_.push_back(*smallest);
  }

  Assignments Strongest(const std::vector<const Family*>& families) {
    Assignments all;
    for (const Family* family : families) {
      if (family->longest_sequence) return WithSequence(all, /*shortest=*/true);  // the last of them
      all = Joined(all, family->settings.back());
    }
    return all;
  }

  static ChangeEffect EffectOf(const std::vector<const Family*>& families) {
    ChangeEffect effect = ChangeEffect::kSameBits;
    for (const Family* family : families) effect = std::max(effect, family->effect);
    return effect;
  }

  const PlannedRun& run_;
  const ReadVariation& read_;
  const MachineRates& rates_;
  std::vector<Family> families_;
  std::vector<PlanChange> found_;
  PlanChange least_;
  int64_t steps_ = 0;  // of tapes that were planned
};

const char* TextOf(ChangeEffect effect) {
  switch (effect) {
    case ChangeEffect::kSameBits:
      return "the same result, bit for bit";
    case ChangeEffect::kSameBatch:
      return "the same rows a step";
    case ChangeEffect::kRounding:
      return "the same rows and model, other rounding";
    case ChangeEffect::kOther:
      return "changes what is trained";
  }
  return "";
}

const char* NameOf(ChangeEffect effect) {
  if (effect == ChangeEffect::kSameBits) return "same_bits";
  if (effect == ChangeEffect::kRounding) return "rounding";
  return effect == ChangeEffect::kSameBatch ? "same_batch" : "other";
}

nlohmann::ordered_json ChangeJson(const PlanChange& change) {
  nlohmann::ordered_json json;
  for (const std::string& assignment : change.assignments) {
    const std::vector<std::string> parts = absl::StrSplit(assignment, absl::MaxSplits('=', 1));
    json["recipe"][parts[0]] = parts[1];
  }
  json["planned_bytes"] = change.planned_bytes;
  json["host_bytes"] = change.host_bytes;
  json["disk_bytes"] = change.disk_bytes;
  json["step_seconds"] = change.step_seconds;
  json["tokens_per_second"] = 1 / change.token_seconds;
  json["effect"] = NameOf(change.effect);
  return json;
}

std::string ChangeText(const PlanChange& change) {
  std::string text;
  for (const std::string& assignment : change.assignments) {
    absl::StrAppend(&text, "  ", absl::StrReplaceAll(assignment, {{"=", ": "}}), "\n");
  }
  absl::StrAppend(&text, "      ", MiBText(change.planned_bytes));
  if (change.host_bytes > 0) absl::StrAppend(&text, ", host ", MiBText(change.host_bytes));
  if (change.disk_bytes > 0) absl::StrAppend(&text, ", disk ", MiBText(change.disk_bytes));
  absl::StrAppendFormat(&text, ", %.3g tokens/s predicted,\n      %s\n", 1 / change.token_seconds,
                        TextOf(change.effect));
  return text;
}

}  // namespace

PlanChanges FindChanges(const PlannedRun& run, const ReadVariation& read, const MachineRates& rates, size_t count) {
  return Search(run, read, rates).Run(count);
}

std::string FormatChanges(const PlanChanges& changes, const RunPlan& plan) {
  if (changes.cheapest.empty()) {
    if (changes.least.planned_bytes == 0) return "";
    std::string budgets;
    for (const auto& [name, bytes] : {std::pair("device", plan.budget_bytes), std::pair("host", plan.host.budget_bytes),
                                      std::pair("disk", plan.disk.budget_bytes)}) {
      if (bytes > 0) absl::StrAppend(&budgets, budgets.empty() ? "" : ", ", name, " ", MiBText(bytes));
    }
    std::string text;
    AppendWrapped(absl::StrCat("No change that was tried fits the budgets (", budgets, "). The least is"), 0, &text);
    return text + ChangeText(changes.least);
  }
  std::string text = "Changes that would make it fit, each alone:\n";
  for (const PlanChange& change : changes.cheapest) absl::StrAppend(&text, ChangeText(change));
  return text;
}

void AddChangesJson(const PlanChanges& changes, nlohmann::ordered_json* json) {
  (*json)["changes"] = nlohmann::ordered_json::array();
  for (const PlanChange& change : changes.cheapest) (*json)["changes"].push_back(ChangeJson(change));
  (*json)["least"] = nullptr;
  if (changes.least.planned_bytes > 0) (*json)["least"] = ChangeJson(changes.least);
}

}  // namespace thimble
