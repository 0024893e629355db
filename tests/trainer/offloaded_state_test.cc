// Optimiser state in host memory or a spill file: the same bits as in memory, tiers as large as planned, checkpoints.
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/checkpoint.h"
#include "trainer/update.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 60;

std::vector<OptimizerOptions> Optimizers() {
  return {{.kind = OptimizerKind::kAdamW, .weight_decay = 0.01, .max_grad_norm = 0.5},
          {.kind = OptimizerKind::kAdamW8Bit, .weight_decay = 0.01, .max_grad_norm = 0.5},
          {.kind = OptimizerKind::kLion, .beta2 = 0.99},
          {.kind = OptimizerKind::kAdafactor},
          {.kind = OptimizerKind::kApollo, .eps = 1e-6, .projection_rank = 8, .projection_steps = 2}};
}

// Parameters and the optimiser's state, wherever it lies.
std::vector<float> Everything(const Store& store) {
  std::vector<float> all;
  for (StoreId id : store.Trainable()) {
    const Vector v = store.vector(id);
    all.insert(all.end(), v.data, v.data + v.size);
    for (StoreId state : store.entry(id).state) {
      const StoreEntry& entry = store.entry(state);
      std::vector<float> values(static_cast<size_t>(entry.rows * entry.cols));
      if (entry.slot < 0) {
        std::copy_n(store.vector(state).data, values.size(), values.data());
      } else {
        EXPECT_TRUE(store.ReadState(state, 0, entry.bytes, values.data()).ok());
      }
      all.insert(all.end(), values.begin(), values.end());
    }
  }
  return all;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

void Train(Engine* engine, int64_t first_step, int64_t steps) {
  for (int64_t step = first_step; step < first_step + steps; ++step) {
    const Batch batch = RandomSample(kTokens, static_cast<uint64_t>(step), 67);
    engine->ZeroGradients();
    engine->TrainMicroStep(batch, 1.0f / static_cast<float>(batch.num_targets), static_cast<uint64_t>(step));
    engine->Update(3e-3, step);
    ASSERT_TRUE(engine->status().ok()) << engine->status();
  }
}

// A vocabulary so large that its embedding is updated in three parts, the last of no even size.
DecoderConfig ManyPartsConfig() {
  DecoderConfig config = TinyConfig();
  config.num_layers = 1;
  config.windows.assign(1, 0);
  config.vocab_size = 70001;
  config.tie_embeddings = true;
  return config;
}

void ExpectSameAsOnDevice(const DecoderConfig& config, const AdapterOptions& adapter, OptimizerOptions optimizer) {
  SCOPED_TRACE(std::string(NameOf(optimizer.kind)));
  TinyModel device(config, adapter, optimizer);
  Engine expected = device.MakeEngine(kTokens);
  Train(&expected, 1, 3);
  for (const StateTier tier : {StateTier::kHost, StateTier::kDisk}) {
    const bool host = tier == StateTier::kHost;
    optimizer.state_tier = tier;
    TinyModel model(config, adapter, optimizer);
    SetNumThreads(host ? 1 : 2);
    Engine engine = model.MakeEngine(kTokens);
    EXPECT_EQ(model.store().BytesOf(Category::kMoments), 0);
    EXPECT_GE(model.store().TierBytes(host), device.store().BytesOf(Category::kMoments));
    EXPECT_EQ(model.store().TierBytes(!host), 0);
    Train(&engine, 1, 3);
    EXPECT_TRUE(SameBits(Everything(model.store()), Everything(device.store()))) << host;
    EXPECT_EQ(model.store().state_tier()->high_water_bytes(), model.store().TierBytes(host));
  }
}

TEST(OffloadedStateTest, GivesTheBitsOfTheDevice) {
  DecoderConfig wide = TinyConfig();
  wide.hidden_dim = 72;
  wide.head_dim = 18;
  for (const OptimizerOptions& optimizer : Optimizers()) {
    ExpectSameAsOnDevice(wide, {}, optimizer);
    if (optimizer.kind != OptimizerKind::kApollo) ExpectSameAsOnDevice(TinyConfig(), TinyAdapter(), optimizer);
  }
}

TEST(OffloadedStateTest, LargeParametersAreUpdatedInParts) {
  ASSERT_GT(ManyPartsConfig().vocab_size * ManyPartsConfig().hidden_dim, 2 * kUpdatePart);
  for (const OptimizerOptions& optimizer : Optimizers()) ExpectSameAsOnDevice(ManyPartsConfig(), {}, optimizer);
  // No more than three parts of the state are in the arena at once.
  OptimizerOptions optimizer = Optimizers()[0];
  optimizer.state_tier = StateTier::kHost;
  TinyModel model(ManyPartsConfig(), {}, optimizer);
  const Engine engine = model.MakeEngine(kTokens);
  EXPECT_LE(engine.update()->plan.device.peak_bytes, 3 * 2 * kUpdatePart * int64_t{sizeof(float)} + (64 << 10));
}

TEST(OffloadedStateTest, CheckpointsAreThoseOfTheDevice) {
  TempFolder folder;
  for (OptimizerOptions optimizer : {Optimizers()[0], Optimizers()[1]}) {
    TinyModel device(ManyPartsConfig(), {}, optimizer);
    Engine expected = device.MakeEngine(kTokens);
    Train(&expected, 1, 2);
    const std::string saved = folder / "device.h5";
    ASSERT_TRUE(SaveCheckpoint(saved, device.store(), {}, {}).ok());
    Train(&expected, 3, 1);

    optimizer.state_tier = StateTier::kDisk;
    TinyModel model(ManyPartsConfig(), {}, optimizer);
    Engine engine = model.MakeEngine(kTokens);
    ASSERT_TRUE(engine.Prepare().ok());
    const auto state = LoadCheckpoint(saved, {}, &model.store());
    ASSERT_TRUE(state.ok()) << state.status();
    Train(&engine, 3, 1);
    EXPECT_TRUE(SameBits(Everything(model.store()), Everything(device.store())));
    const std::string again = folder / "disk.h5";
    ASSERT_TRUE(SaveCheckpoint(again, model.store(), {}, {}).ok());
    TinyModel back(ManyPartsConfig(), {}, Optimizers()[optimizer.kind == OptimizerKind::kAdamW ? 0 : 1]);
    ASSERT_TRUE(LoadCheckpoint(again, {}, &back.store()).ok());
    EXPECT_TRUE(SameBits(Everything(back.store()), Everything(device.store())));
  }
}

TEST(OffloadedStateTest, AnUpdateThatIsSkippedLeavesEverything) {
  OptimizerOptions optimizer = Optimizers()[0];
  optimizer.state_tier = StateTier::kHost;
  TinyModel model(TinyConfig(), {}, optimizer);
  Engine engine = model.MakeEngine(kTokens);
  Train(&engine, 1, 2);
  const std::vector<float> before = Everything(model.store());
  const StoreId first = model.store().Trainable().front();
  model.store().vector(model.store().entry(first).gradient)[0] = std::nanf("");
  EXPECT_FALSE(std::isfinite(engine.Update(1e-3, 3)));
  EXPECT_TRUE(SameBits(before, Everything(model.store())));
}

}  // namespace
}  // namespace thimble
