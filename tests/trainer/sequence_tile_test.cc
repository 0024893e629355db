// Sequences in tiles and values that leave the arena while they are idle: the same bits in less of the arena.
#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/engine.h"
#include "trainer/tier.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 4 * 256 + 100;
constexpr int64_t kLayers = 4;

DecoderConfig DeepConfig() {
  DecoderConfig config = TinyConfig();
  config.num_layers = kLayers;
  config.qk_norm = true;
  config.windows.assign(kLayers, 0);
  config.windows[1] = 300;
  return config;
}

SavePlan Spans(int64_t span, SaveAction kept) {
  SavePlan plan(LayerSavePlan{SaveAction::kRecompute, SaveAction::kRecompute});
  for (int64_t layer = span - 1; layer < kLayers; layer += span) {
    plan.SetLayer(layer, {SaveAction::kRecompute, kept});
  }
  return plan;
}

std::vector<SavePlan> Plans() {
  return {SavePolicy::kKeep,
          SavePolicy::kRecompute,
          SavePolicy::kOffloadDisk,
          Spans(2, SaveAction::kKeep),
          Spans(3, SaveAction::kOffloadHost),
          SavePlan(LayerSavePlan{SaveAction::kRecompute, SaveAction::kKeep, SaveAction::kOffloadHost})};
}

EngineOptions Options(const SavePlan& plan, int64_t tile, Placement idle) {
  EngineOptions options;
  options.activations = plan;
  options.max_tokens = kTokens;
  options.sequence_tile = tile;
  options.idle_tier = idle;
  return options;
}

void ExpectTiersAsPlanned(const Engine& engine, const std::string& what) {
  EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes) << what;
  for (const Placement place : {Placement::kHost, Placement::kDisk}) {
    const Tier* tier = engine.tier(place);
    EXPECT_EQ(tier == nullptr ? 0 : tier->high_water_bytes(), engine.tier_bytes(place)) << what;
  }
}

Batch LongBatch() { return Packed({RandomSample(700, 1, 67), RandomSample(kTokens - 700, 2, 67)}); }

TEST(SequenceTileTest, TilesGiveTheBitsOfTheWholeSequence) {
  const Batch batch = LongBatch();
  for (const double dropout : {0.0, 0.2}) {
    TinyModel model(DeepConfig(), TinyAdapter(/*dora=*/false, dropout));
    Engine whole = model.MakeEngine(kTokens);
    double expected_loss = 0;
    const std::vector<float> expected = GradientsOf(&whole, {batch}, &expected_loss, 3);
    const double expected_evaluation = whole.Evaluate(batch, nullptr);
    for (const SavePlan& plan : Plans()) {
      for (const Placement idle : {Placement::kActivation, Placement::kHost, Placement::kDisk}) {
        SetNumThreads(idle == Placement::kDisk ? 1 : 2);
        const int64_t tile = idle == Placement::kHost ? 256 : 512;
        Engine engine(&model.decoder(), &model.store(), Options(plan, tile, idle));
        const std::string what = plan.Text(kLayers) + " " + std::to_string(tile);
        double loss = 0;
        const std::vector<float> found = GradientsOf(&engine, {batch}, &loss, 3);
        ASSERT_TRUE(engine.status().ok()) << engine.status();
        EXPECT_EQ(found, expected) << what;
        EXPECT_EQ(loss, expected_loss) << what;
        ExpectTiersAsPlanned(engine, what);
        std::vector<float> losses;
        EXPECT_EQ(engine.Evaluate(batch, &losses), expected_evaluation) << what;
        EXPECT_EQ(losses.size(), static_cast<size_t>(kTokens));
      }
    }
  }
  SetNumThreads(2);
}

// Trained norms and an output layer that trains sum their gradients tile by tile.
TEST(SequenceTileTest, WholeModelsAgreeToRounding) {
  const Batch batch = LongBatch();
  TinyModel model(DeepConfig(), AdapterOptions());
  Engine whole = model.MakeEngine(kTokens);
  const std::vector<float> expected = GradientsOf(&whole, {batch});
  Engine engine(&model.decoder(), &model.store(), Options(SavePolicy::kRecompute, 256, Placement::kHost));
  const std::vector<float> found = GradientsOf(&engine, {batch});
  ASSERT_EQ(found.size(), expected.size());
  float largest = 0;
  for (float g : expected) largest = std::max(largest, std::abs(g));
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 1e-6f * largest) << i;
}

TEST(SequenceTileTest, ShortBatchesRunInTheSameTiers) {
  TinyModel model(DeepConfig(), TinyAdapter());
  Engine whole = model.MakeEngine(kTokens);
  Engine engine(&model.decoder(), &model.store(), Options(SavePolicy::kRecompute, 256, Placement::kHost));
  for (const int64_t tokens : {1, 200, 257, 900}) {
    const Batch batch = RandomSample(tokens, 9, 67);
    EXPECT_EQ(GradientsOf(&engine, {batch}), GradientsOf(&whole, {batch})) << tokens;
  }
}

TEST(SequenceTileTest, HiddenStatesAreThoseOfTheFirstTile) {
  TinyModel model(DeepConfig(), TinyAdapter());
  Engine whole = model.MakeEngine(kTokens);
  Engine engine(&model.decoder(), &model.store(), Options(SavePolicy::kRecompute, 256, Placement::kHost));
  const Batch batch = LongBatch();
  const ConstMatrix expected = whole.Hidden(batch);
  ConstMatrix found;
  EXPECT_EQ(engine.Evaluate(batch, nullptr, &found), whole.Evaluate(batch, nullptr));
  ASSERT_EQ(found.rows, 256);
  for (int64_t t = 0; t < found.rows; ++t) {
    for (int64_t i = 0; i < found.cols; ++i) ASSERT_EQ(found(t, i), expected(t, i)) << t;
  }
}

// Nothing of all tokens by the hidden width stays: the arena is a fraction of what the layers' results alone would
// take.
TEST(SequenceTileTest, TakesAFractionOfTheArena) {
  TinyModel model(DeepConfig(), TinyAdapter());
  const Engine recompute = model.MakeEngine(kTokens, SavePolicy::kRecompute);
  const Engine resident(&model.decoder(), &model.store(), Options(SavePolicy::kRecompute, 256, Placement::kActivation));
  const Engine idle(&model.decoder(), &model.store(), Options(SavePolicy::kRecompute, 256, Placement::kHost));
  EXPECT_LT(resident.largest().plan.device.peak_bytes, recompute.largest().plan.device.peak_bytes);
  EXPECT_LT(idle.largest().plan.device.peak_bytes, resident.largest().plan.device.peak_bytes / 2);
  EXPECT_GT(idle.tier_bytes(Placement::kHost), 0);
}

}  // namespace
}  // namespace thimble
