// Saved values in fewer bytes: gradients close to the exact ones, the same for any thread count and tier, less memory.
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

constexpr int64_t kTokens = 300;
constexpr int64_t kLayers = 4;

DecoderConfig DeepConfig() {
  DecoderConfig config = TinyConfig();
  config.num_layers = kLayers;
  config.windows.assign(kLayers, 0);
  return config;
}

SavePlan Plan(SaveAction inner, SaveAction boundary, Compression compression) {
  SavePlan plan(LayerSavePlan{inner, boundary});
  plan.SetCompression(compression);
  return plan;
}

double RelativeDistance(const std::vector<float>& found, const std::vector<float>& expected) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(static_cast<double>(found[i]) - expected[i], 2);
    size += std::pow(static_cast<double>(expected[i]), 2);
  }
  return std::sqrt(difference / size);
}

TEST(CompressionTest, GradientsAreCloseAndDoNotDependOnTierOrThreads) {
  const Batch batch = Packed({RandomSample(120, 1, 67), RandomSample(kTokens - 120, 2, 67)});
  TinyModel model(DeepConfig(), TinyAdapter());
  Engine exact = model.MakeEngine(kTokens);
  double exact_loss = 0;
  const std::vector<float> expected = GradientsOf(&exact, {batch}, &exact_loss);
  for (const SaveAction inner : {SaveAction::kKeep, SaveAction::kRecompute}) {
    double before = 0;
    for (const auto& [compression, most] : {std::pair{Compression::kBF16, 0.01}, std::pair{Compression::kInt8, 0.05}}) {
      std::vector<float> first;
      for (const SaveAction boundary : {SaveAction::kKeep, SaveAction::kOffloadHost, SaveAction::kOffloadDisk}) {
        SetNumThreads(boundary == SaveAction::kKeep ? 1 : 2);
        const SavePlan plan = Plan(inner, boundary, compression);
        Engine engine = model.MakeEngine(kTokens, plan);
        double loss = 0;
        const std::vector<float> found = GradientsOf(&engine, {batch}, &loss);
        ASSERT_TRUE(engine.status().ok()) << engine.status();
        EXPECT_EQ(loss, exact_loss) << "the forward pass is exact";
        if (first.empty()) first = found;
        EXPECT_EQ(found, first) << plan.Text(kLayers);
        const double distance = RelativeDistance(found, expected);
        EXPECT_LT(distance, most) << plan.Text(kLayers);
        EXPECT_GT(distance, before) << "int8 is coarser than bf16, and bf16 than nothing";
        EXPECT_EQ(engine.arena_high_water_bytes(), engine.largest().plan.device.peak_bytes);
        for (const Placement place : {Placement::kHost, Placement::kDisk}) {
          const Tier* tier = engine.tier(place);
          EXPECT_EQ(tier == nullptr ? 0 : tier->high_water_bytes(), engine.tier_bytes(place)) << plan.Text(kLayers);
        }
      }
      before = RelativeDistance(first, expected);
    }
  }
  SetNumThreads(2);
}

TEST(CompressionTest, TakesItsShareOfTheBytes) {
  TinyModel model(DeepConfig(), TinyAdapter());
  const auto arena = [&](SaveAction inner, Compression compression) {
    return model.MakeEngine(kTokens, Plan(inner, SaveAction::kKeep, compression)).arena_bytes();
  };
  EXPECT_LT(arena(SaveAction::kKeep, Compression::kBF16), arena(SaveAction::kKeep, Compression::kNone) * 3 / 4);
  EXPECT_LT(arena(SaveAction::kKeep, Compression::kInt8), arena(SaveAction::kKeep, Compression::kBF16) * 9 / 10);
  const auto host = [&](Compression compression) {
    const SavePlan plan = Plan(SaveAction::kRecompute, SaveAction::kOffloadHost, compression);
    return model.MakeEngine(kTokens, plan).tier_bytes(Placement::kHost);
  };
  EXPECT_EQ(2 * host(Compression::kBF16), host(Compression::kNone));
}

TEST(CompressionTest, WorksWithTilesAndIdleValues) {
  constexpr int64_t kMany = 3 * 256;
  const Batch batch = RandomSample(kMany, 5, 67);
  TinyModel model(DeepConfig(), TinyAdapter());
  Engine exact = model.MakeEngine(kMany);
  const std::vector<float> expected = GradientsOf(&exact, {batch});
  EngineOptions options;
  options.activations = Plan(SaveAction::kRecompute, SaveAction::kOffloadHost, Compression::kBF16);
  options.max_tokens = kMany;
  options.sequence_tile = 256;
  options.idle_tier = Placement::kHost;
  Engine engine(&model.decoder(), &model.store(), options);
  const double distance = RelativeDistance(GradientsOf(&engine, {batch}), expected);
  EXPECT_GT(distance, 0);
  EXPECT_LT(distance, 0.01);
  EXPECT_EQ(engine.tier(Placement::kHost)->high_water_bytes(), engine.tier_bytes(Placement::kHost));
}

}  // namespace
}  // namespace thimble
