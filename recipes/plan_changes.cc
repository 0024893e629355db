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
#include "recipes/plan_policies.h"
#include "recipes/recipe_reader.h"
#include "trainer/engine.h"

namespace thimble {
namespace {

using recipe::Adapter;
using recipe::Memory;
using recipe::Quantization;
using Assignments = std::vector<std::string>;

constexpr int64_t kSmallestRank = 4;
constexpr int64_t kShortestSequence = 16;
constexpr int64_t kMostShortening = 16;  // a sequence cut to less is another task

// Settings of one kind, mildest first; none where the recipe leaves nothing to change.
struct Family {
  ChangeEffect effect = ChangeEffect::kOther;
  std::vector<Assignments> settings;
  bool longest_sequence = false;  // in place of settings: data.seq_len as long as fits
};

// Those that take less than the recipe's own.
Family Policies(const PlannedRun& run) {
  std::vector<std::pair<int64_t, Assignments>> smaller;
  for (const PolicyCandidate& candidate : PolicyCandidates(run.engine_options)) {
    const Engine engine(&run.model->decoder, &run.model->store, candidate.options);
    if (engine.arena_bytes() < run.plan.arena_bytes) smaller.emplace_back(-engine.arena_bytes(), candidate.assignments);
  }
  std::sort(smaller.begin(), smaller.end());
  Family family{ChangeEffect::kSameBits, {}};
  for (const auto& [bytes, assignments] : smaller) family.settings.push_back(assignments);
  return family;
}

// What stays over a step in a tier further away, where no more than its transfers are paid for it.
Family FrozenWeights(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  if (recipe.adapter().type() == Adapter::TYPE_NONE) return family;
  const Memory::Weights now = recipe.memory().weights();
  if (now == Memory::WEIGHTS_DEVICE) family.settings.push_back({"memory.weights=host"});
  if (now != Memory::WEIGHTS_DISK) family.settings.push_back({"memory.weights=disk"});
  return family;
}

Family OptimizerStates(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  const Memory::OptimizerState now = recipe.memory().optimizer_state();
  if (now == Memory::OPTIMIZER_STATE_DEVICE) family.settings.push_back({"memory.optimizer_state=host"});
  if (now != Memory::OPTIMIZER_STATE_DISK) family.settings.push_back({"memory.optimizer_state=disk"});
  return family;
}

// Where it leads to the same bits.
Family UpdatesInBackward(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBits, {}};
  const recipe::Training& training = recipe.training();
  const bool possible = training.accumulation() == 1 && recipe.optimizer().max_grad_norm() == 0;
  if (possible && !training.optimizer_in_backward()) family.settings = {{"training.optimizer_in_backward=true"}};
  return family;
}

// Fewer sequences at once and as many more times.
Family MicroBatches(const Recipe& recipe) {
  Family family{ChangeEffect::kSameBatch, {}};
  const int64_t size = recipe.training().micro_batch_size();
  for (int64_t smaller = size / 2; smaller >= 1; --smaller) {
    if (size % smaller != 0) continue;
    family.settings.push_back(
        {absl::StrCat("training.micro_batch_size=", smaller),
         absl::StrCat("training.accumulation=", recipe.training().accumulation() * (size / smaller))});
  }
  return family;
}

// Weights in fewer bits, or frozen beside an adapter.
Family Weights(const Recipe& recipe) {
  Family family;
  const bool quantized = recipe.quantization().format() != Quantization::FORMAT_NONE;
  if (recipe.adapter().type() == Adapter::TYPE_NONE) {
    const Assignments lora = {"adapter.type=lora", "trainable.weights=adapter", "trainable.embeddings=false"};
    family.settings = {lora, lora};
    family.settings[1].push_back("quantization.format=nf4");
  } else if (!quantized) {
    family.settings = {{"quantization.format=nf4"}};
  } else if (!recipe.quantization().double_quant()) {
    family.settings = {{"quantization.double_quant=true"}};
  }
  return family;
}

Family Ranks(const Recipe& recipe) {
  Family family;
  if (recipe.adapter().type() == Adapter::TYPE_NONE) return family;
  for (int64_t rank = recipe.adapter().rank() / 2; rank >= kSmallestRank; rank /= 2) {
    family.settings.push_back({absl::StrCat("adapter.rank=", rank)});
  }
  return family;
}

Family Embeddings(const Recipe& recipe) {
  Family family;
  if (TrainsAllWeights(recipe) && TrainsEmbeddings(recipe)) family.settings = {{"trainable.embeddings=false"}};
  return family;
}

double FullnessOf(const RunPlan& plan) {
  const auto share = [](int64_t bytes, int64_t budget) {
    return budget == 0 ? 0 : static_cast<double>(bytes) / static_cast<double>(budget);
  };
  return std::max({share(plan.planned_bytes, plan.budget_bytes), share(plan.host.planned_bytes, plan.host.budget_bytes),
                   share(plan.disk.planned_bytes, plan.disk.budget_bytes)});
}

class Search {
 public:
  Search(const PlannedRun& run, const ReadVariation& read, const MachineRates& rates)
      : run_(run), read_(read), rates_(rates) {
    const Recipe& recipe = run.model->recipe;
    for (Family& family : std::vector<Family>{Policies(run),
                                              FrozenWeights(recipe),
                                              OptimizerStates(recipe),
                                              UpdatesInBackward(recipe),
                                              MicroBatches(recipe),
                                              Weights(recipe),
                                              Ranks(recipe),
                                              Embeddings(recipe),
                                              {ChangeEffect::kOther, {}, true}}) {
      if (!family.settings.empty() || family.longest_sequence) families_.push_back(std::move(family));
    }
  }

  PlanChanges Run(size_t count) {
    std::vector<bool> fits_alone;
    for (const Family& family : families_) fits_alone.push_back(Mildest({}, ChangeEffect::kSameBits, family));
    for (size_t i = 0; i < families_.size() && found_.size() < count; ++i) {
      for (size_t j = i + 1; j < families_.size() && !fits_alone[i] && found_.size() < count; ++j) {
        if (families_[i].longest_sequence || fits_alone[j]) continue;
        Mildest(families_[i].settings.back(), families_[i].effect, families_[j]);
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
    PlanChange change = Describe(assignments, effect, *variation);
    if (least_.planned_bytes == 0 || change.fullness < least_.fullness) least_ = change;
    if (!CheckBudget(variation->plan, variation->engine_options).ok()) return std::nullopt;
    return change;
  }

  // The longest data.seq_len that fits beside `base`.
  Assignments WithSequence(const Assignments& base, bool shortest) const {
    const int64_t now = run_.model->recipe.data().seq_len();
    int64_t length = std::min(now, std::max(kShortestSequence, now / kMostShortening));
    if (!shortest) {
      const std::unique_ptr<Variation> variation = Plan(base);
      if (variation == nullptr) return {};
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
      Assignments assignments = base;
      assignments.insert(assignments.end(), setting.begin(), setting.end());
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

  Assignments Strongest(const std::vector<const Family*>& families) const {
    Assignments all;
    for (const Family* family : families) {
      if (family->longest_sequence) return WithSequence(all, /*shortest=*/true);  // the last of them
      const Assignments& setting = family->settings.back();
      for (const std::string& assignment : setting) {
        if (std::find(all.begin(), all.end(), assignment) == all.end()) all.push_back(assignment);
      }
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
};

const char* TextOf(ChangeEffect effect) {
  switch (effect) {
    case ChangeEffect::kSameBits:
      return "the same result, bit for bit";
    case ChangeEffect::kSameBatch:
      return "the same rows a step";
    case ChangeEffect::kOther:
      return "changes what is trained";
  }
  return "";
}

const char* KeyOf(ChangeEffect effect) {
  if (effect == ChangeEffect::kSameBits) return "same_bits";
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
  json["effect"] = KeyOf(change.effect);
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
    return absl::StrCat("No change that was tried fits the budgets (", budgets, "). The least is\n",
                        ChangeText(changes.least));
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
