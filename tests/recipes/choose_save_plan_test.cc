#include "recipes/choose_save_plan.h"

#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

constexpr MachineRates kRates = {1e11, 1e11, 5e10, 5e10, 1e10, 5e9, 1e9};

struct Outcome {
  ChosenSavePlan chosen;
  int64_t arena_bytes = 0;
  int64_t host_bytes = 0;
};

Outcome Choose(const TierBudgets& budgets, int64_t tokens = 512) {
  DecoderConfig config = TinyConfig();
  config.num_layers = 8;
  config.windows.assign(8, 0);
  TinyModel model(config, TinyAdapter());
  EngineOptions options;
  options.max_tokens = tokens;
  recipe::Recipe recipe;
  Outcome outcome;
  outcome.chosen = ChooseSavePlan(recipe, model.decoder(), &model.store(), options, budgets, 1000, kRates);
  options = outcome.chosen.options;
  const Engine engine(&model.decoder(), &model.store(), options);
  outcome.arena_bytes = engine.arena_bytes();
  outcome.host_bytes = engine.tier_bytes(Placement::kHost);
  return outcome;
}

TEST(ChooseSavePlanTest, KeepsEverythingWhereItFits) {
  const Outcome free = Choose({});
  EXPECT_TRUE(free.chosen.fits);
  EXPECT_EQ(free.chosen.options.activations, SavePlan(SavePolicy::kKeep));
  EXPECT_EQ(free.chosen.step_seconds, free.chosen.keep_step_seconds);
}

TEST(ChooseSavePlanTest, LessMemoryNeverIsFasterAndAlwaysIsKept) {
  const int64_t keep = Choose({}).arena_bytes + 1000;
  double before = 0;
  for (const double share : {1.0, 0.8, 0.5, 0.3}) {
    const TierBudgets budgets = {static_cast<int64_t>(share * static_cast<double>(keep)), 0, 0};
    const Outcome outcome = Choose(budgets);
    ASSERT_TRUE(outcome.chosen.fits) << share;
    EXPECT_LE(outcome.arena_bytes + 1000, budgets.device);
    EXPECT_EQ(outcome.host_bytes, 0) << "a tier without a budget is not used";
    EXPECT_GE(outcome.chosen.step_seconds, before) << share;
    EXPECT_GE(outcome.chosen.step_seconds, outcome.chosen.keep_step_seconds);
    before = outcome.chosen.step_seconds;
  }
  // At the half, some layers keep what others compute again.
  const SavePlan half = Choose({keep / 2, 0, 0}).chosen.options.activations;
  EXPECT_EQ(half.layer(7).inner, SaveAction::kKeep);
  EXPECT_EQ(half.layer(0).inner, SaveAction::kRecompute);
}

TEST(ChooseSavePlanTest, UsesTheHostWithinItsBudget) {
  const int64_t keep = Choose({}).arena_bytes + 1000;
  const TierBudgets roomy = {keep * 4 / 10, int64_t{1} << 40, 0};
  const Outcome outcome = Choose(roomy);
  ASSERT_TRUE(outcome.chosen.fits);
  EXPECT_LE(outcome.chosen.step_seconds, Choose({keep * 4 / 10, 0, 0}).chosen.step_seconds);
  const TierBudgets tight = {keep * 4 / 10, 100000, 0};
  EXPECT_LE(Choose(tight).host_bytes, 100000);
}

TEST(ChooseSavePlanTest, NothingFitsGivesTheSmallest) {
  const Outcome outcome = Choose({1000, 0, 0});
  EXPECT_FALSE(outcome.chosen.fits);
  EXPECT_LE(outcome.arena_bytes, Choose({}).arena_bytes / 2);
}

TEST(ChooseSavePlanTest, TilesWhereNothingElseFits) {
  constexpr int64_t kMany = 8192;
  const Outcome smallest = Choose({1000, 0, 0}, kMany);
  EXPECT_EQ(smallest.chosen.options.sequence_tile, 0) << "idle values would have nowhere to go";
  const Outcome least = Choose({1000, int64_t{1} << 40, 0}, kMany);
  EXPECT_LT(least.arena_bytes, smallest.arena_bytes / 2);
  const Outcome tiled = Choose({least.arena_bytes * 11 / 10 + 1000, int64_t{1} << 40, 0}, kMany);
  EXPECT_TRUE(tiled.chosen.fits);
  EXPECT_GT(tiled.chosen.options.sequence_tile, 0);
  EXPECT_EQ(tiled.chosen.options.idle_tier, Placement::kHost);
  EXPECT_GT(tiled.host_bytes, 0);
}

}  // namespace
}  // namespace thimble
