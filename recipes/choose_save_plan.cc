#include "recipes/choose_save_plan.h"

#include <algorithm>
#include <vector>

#include "recipes/plan_policies.h"
#include "recipes/planned_run.h"

namespace thimble {
namespace {

struct Candidate {
  EngineOptions options;
  int64_t device_bytes = 0;
  double seconds = 0;
  bool fits = false;
};

class PlanSearch {
 public:
  PlanSearch(const recipe::Recipe& recipe, const Decoder& decoder, Store* store, const EngineOptions& options,
             const TierBudgets& budgets, int64_t besides_bytes, const MachineRates& rates)
      : recipe_(recipe),
        decoder_(decoder),
        store_(store),
        options_(options),
        budgets_(budgets),
        besides_bytes_(besides_bytes),
        rates_(rates),
        layers_(decoder.config.num_layers) {}

  ChosenSavePlan Run() {
    const Candidate keep = Try(SavePlan(SavePolicy::kKeep));
    ChosenSavePlan chosen;
    chosen.keep_step_seconds = keep.seconds;
    if (!keep.fits) TryOthers(keep);
    if (!best_.fits && MayTile()) TryTiles();
    chosen.options = best_.options;
    chosen.fits = best_.fits;
    chosen.step_seconds = best_.seconds;
    return chosen;
  }

 private:
  void TryOthers(const Candidate& keep) {
    std::vector<Candidate> uniform = {keep};
    for (const LayerSavePlan& layer : Choices()) {
      if (Allowed(SavePlan(layer))) uniform.push_back(Try(SavePlan(layer)));
    }
    MixPairs(uniform);
    for (const int64_t span : {2, 4, 8}) {
      if (span > layers_) break;
      for (const SaveAction kept : {SaveAction::kKeep, SaveAction::kOffloadHost, SaveAction::kOffloadDisk}) {
        if (Allowed(SavePlan(LayerSavePlan{SaveAction::kRecompute, kept}))) Try(Spans(span, kept));
      }
    }
    PreferPlain(uniform);
  }

  // Predictions are good to a few per cent, so less is no reason for a mixture: measured, such ones were slower than
  // the plain plan they promised to beat by one or two.
  void PreferPlain(const std::vector<Candidate>& uniform) {
    constexpr double kWorthwhile = 1.03;
    const Candidate* plain = nullptr;
    for (const Candidate& candidate : uniform) {
      const LayerSavePlan& layer = candidate.options.activations.layer(0);
      const bool one_action = layer.inner == layer.elementwise && layer.inner == layer.attention;
      if (!candidate.fits || !one_action || candidate.seconds > kWorthwhile * best_.seconds) continue;
      if (plain == nullptr || candidate.seconds < plain->seconds) plain = &candidate;
    }
    if (plain != nullptr && best_.fits) best_ = *plain;
  }

  // Tiles cut the sums over tokens of trained norms, and DoRA passes over the weights for each.
  bool MayTile() const {
    return options_.sequence_tile == 0 && options_.idle_tier == Placement::kActivation && !decoder_.train_weights &&
           !decoder_.adapter.dora && (budgets_.host > 0 || budgets_.disk > 0);
  }

  // Slower ones that take less later: the first that fits is the fastest.
  void TryTiles() {
    constexpr int64_t kTile = 1024;
    for (const int64_t span : {1, 2, 4, 8}) {
      if (span > layers_) return;
      for (const SaveAction kept : {SaveAction::kOffloadHost, SaveAction::kOffloadDisk}) {
        const SavePlan plan = span == 1 ? SavePlan(LayerSavePlan{SaveAction::kRecompute, kept}) : Spans(span, kept);
        if (!Allowed(plan)) continue;
        for (const Placement idle : {Placement::kHost, Placement::kDisk}) {
          if ((idle == Placement::kHost ? budgets_.host : budgets_.disk) == 0) continue;
          EngineOptions options = options_;
          options.sequence_tile = kTile;
          if (options.mlp_tile == 0) options.mlp_tile = kTile;
          options.idle_tier = idle;
          options.activations = plan;
          options.activations.SetCompression(options_.activations.compression());
          if (Try(options).fits) return;
        }
      }
    }
  }

  bool Allowed(const SavePlan& plan) const {
    return (budgets_.host > 0 || !plan.UsesTier(SaveAction::kOffloadHost)) &&
           (budgets_.disk > 0 || !plan.UsesTier(SaveAction::kOffloadDisk));
  }

  SavePlan Spans(int64_t span, SaveAction kept) const {
    SavePlan plan(LayerSavePlan{SaveAction::kRecompute, SaveAction::kRecompute});
    for (int64_t layer = span - 1; layer < layers_; layer += span) {
      plan.SetLayer(layer, {SaveAction::kRecompute, kept});
    }
    return plan;
  }

  // What may be fastest for some budget. Values of a kind that costs less to compute again than to move, or more, are
  // chosen apart.
  static std::vector<LayerSavePlan> Choices() {
    constexpr SaveAction kAgain = SaveAction::kRecompute;
    std::vector<LayerSavePlan> choices;
    for (const SaveAction place : {SaveAction::kKeep, SaveAction::kOffloadHost, SaveAction::kOffloadDisk}) {
      if (place != SaveAction::kKeep) choices.push_back({place, place});
      choices.push_back({place, place, place, kAgain});
      choices.push_back({kAgain, place, place, kAgain});
      choices.push_back({kAgain, place});
    }
    return choices;
  }

  // A mixture takes about its share of both times, and of both memories.
  void MixPairs(const std::vector<Candidate>& uniform) {
    constexpr size_t kPairs = 4;
    struct Pair {
      const Candidate *slow, *fast;
      double seconds;
    };
    std::vector<Pair> pairs;
    for (const Candidate& slow : uniform) {
      for (const Candidate& fast : uniform) {
        if (!slow.fits || fast.fits || fast.seconds >= slow.seconds) continue;
        const double share = std::clamp(static_cast<double>(budgets_.device - slow.device_bytes) /
                                            std::max(1.0, static_cast<double>(fast.device_bytes - slow.device_bytes)),
                                        0.0, 1.0);
        pairs.push_back({&slow, &fast, slow.seconds + share * (fast.seconds - slow.seconds)});
      }
    }
    std::stable_sort(pairs.begin(), pairs.end(), [](const Pair& a, const Pair& b) { return a.seconds < b.seconds; });
    for (size_t i = 0; i < std::min(kPairs, pairs.size()); ++i) Mix(*pairs[i].slow, *pairs[i].fast);
  }

  // As many of the last layers as fit under the faster plan: what they save lives shortest.
  void Mix(const Candidate& slow, const Candidate& fast) {
    int64_t fitting = 0;
    int64_t above = layers_;
    while (above - fitting > 1) {
      const int64_t count = fitting + (above - fitting) / 2;
      SavePlan plan = slow.options.activations;
      for (int64_t layer = layers_ - count; layer < layers_; ++layer) {
        plan.SetLayer(layer, fast.options.activations.layer(layer));
      }
      (Try(plan).fits ? fitting : above) = count;
    }
  }

  Candidate Try(const SavePlan& plan) {
    EngineOptions options = options_;
    options.activations = plan;
    options.activations.SetCompression(options_.activations.compression());
    return Try(options);
  }

  Candidate Try(EngineOptions options) {
    options.update = update_;
    const Engine engine(&decoder_, store_, options);
    update_ = engine.shared_update();
    const auto within = [](int64_t budget, int64_t bytes) { return budget == 0 || bytes <= budget; };
    const int64_t on_host = store_->TierBytes(/*host=*/true);
    const int64_t on_disk = store_->TierBytes(/*host=*/false);
    Candidate candidate;
    candidate.options = options;
    candidate.device_bytes = besides_bytes_ + engine.arena_bytes();
    candidate.seconds = PredictStep(decoder_, engine, recipe_, rates_).seconds;
    candidate.fits = within(budgets_.device, candidate.device_bytes) &&
                     within(budgets_.host, on_host + engine.tier_bytes(Placement::kHost)) &&
                     within(budgets_.disk, on_disk + engine.tier_bytes(Placement::kDisk));
    if (!tried_ || Better(candidate, best_)) best_ = candidate;
    tried_ = true;
    return candidate;
  }

  static bool Better(const Candidate& a, const Candidate& b) {
    if (a.fits != b.fits) return a.fits;
    if (!a.fits) return a.device_bytes < b.device_bytes;
    return a.seconds != b.seconds ? a.seconds < b.seconds : a.device_bytes < b.device_bytes;
  }

  const recipe::Recipe& recipe_;
  const Decoder& decoder_;
  Store* store_;
  EngineOptions options_;
  TierBudgets budgets_;
  int64_t besides_bytes_;
  MachineRates rates_;
  int64_t layers_;
  Candidate best_;
  std::shared_ptr<PlannedTape> update_;  // the same whatever is saved
  bool tried_ = false;
};

}  // namespace

ChosenSavePlan ChooseSavePlan(const recipe::Recipe& recipe, const Decoder& decoder, Store* store,
                              const EngineOptions& options, const TierBudgets& budgets, int64_t besides_bytes,
                              const MachineRates& rates) {
  return PlanSearch(recipe, decoder, store, options, budgets, besides_bytes, rates).Run();
}

}  // namespace thimble
