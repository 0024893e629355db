// Updates in backward: the bits of the ordinary update, and gradients that never live all at once.
#include "trainer/update_in_backward.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

constexpr int64_t kTokens = 300;

DecoderConfig DeepConfig(bool tied) {
  DecoderConfig config = TinyConfig();
  config.num_layers = 6;
  config.windows.assign(6, 0);
  config.tie_embeddings = tied;
  return config;
}

// Parameters and moments, as bits.
std::vector<float> Everything(const Store& store) {
  std::vector<float> all;
  for (StoreId id : store.Trainable()) {
    std::vector<StoreId> tensors = {id};
    for (StoreId state : store.entry(id).state) tensors.push_back(state);
    for (StoreId tensor : tensors) {
      const StoreEntry& entry = store.entry(tensor);
      std::vector<float> values(static_cast<size_t>(entry.rows * entry.cols));
      if (entry.slot < 0) {
        std::copy_n(store.vector(tensor).data, values.size(), values.data());
      } else {
        EXPECT_TRUE(store.ReadState(tensor, 0, entry.bytes, values.data()).ok());
      }
      all.insert(all.end(), values.begin(), values.end());
    }
  }
  return all;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

struct Outcome {
  std::vector<float> everything;
  std::vector<double> losses;
  std::vector<double> norms;
};

Outcome Train(TinyModel* model, const EngineOptions& options) {
  Engine engine(&model->decoder(), &model->store(), options);
  Outcome outcome;
  for (int64_t step = 1; step <= 3; ++step) {
    const Batch batch = Packed({RandomSample(120, 2 * step, 67), RandomSample(kTokens - 120, 2 * step + 1, 67)});
    const float inverse = 1.0f / static_cast<float>(batch.num_targets);
    const auto counter = static_cast<uint64_t>(step);
    double norm = 0;
    if (options.optimizer.in_backward) {
      outcome.losses.push_back(engine.TrainAndUpdate(batch, inverse, counter, 3e-3, step, &norm));
    } else {
      engine.ZeroGradients();
      outcome.losses.push_back(engine.TrainMicroStep(batch, inverse, counter));
      norm = engine.Update(3e-3, step);
    }
    outcome.norms.push_back(norm);
    EXPECT_TRUE(engine.status().ok()) << engine.status();
  }
  EXPECT_EQ(engine.arena_high_water_bytes(), engine.arena_bytes());
  outcome.everything = Everything(model->store());
  return outcome;
}

EngineOptions OptionsOf(const OptimizerOptions& optimizer, const SavePlan& plan, int64_t mlp_tile = 0) {
  EngineOptions options;
  options.optimizer = optimizer;
  options.activations = plan;
  options.mlp_tile = mlp_tile;
  options.max_tokens = kTokens;
  return options;
}

void ExpectSame(const DecoderConfig& config, const AdapterOptions& adapter, OptimizerOptions optimizer,
                const SavePlan& plan, int64_t mlp_tile = 0) {
  SCOPED_TRACE(std::string(NameOf(optimizer.kind)) + " " + plan.Text(config.num_layers));
  TinyModel ordinary(config, adapter, optimizer);
  const Outcome expected = Train(&ordinary, OptionsOf(optimizer, plan, mlp_tile));
  optimizer.in_backward = true;
  TinyModel model(config, adapter, optimizer);
  EXPECT_EQ(model.store().BytesOf(Category::kGradients), 0);
  const Outcome found = Train(&model, OptionsOf(optimizer, plan, mlp_tile));
  EXPECT_TRUE(SameBits(found.everything, expected.everything));
  EXPECT_EQ(found.losses, expected.losses);
  EXPECT_EQ(found.norms, expected.norms);
}

TEST(UpdateInBackwardTest, GivesTheBitsOfTheOrdinaryUpdate) {
  for (const SavePolicy policy :
       {SavePolicy::kKeep, SavePolicy::kRecompute, SavePolicy::kOffloadHost, SavePolicy::kOffloadDisk}) {
    ExpectSame(DeepConfig(policy == SavePolicy::kKeep), {}, {.weight_decay = 0.01}, policy);
  }
  SavePlan spans(LayerSavePlan{SaveAction::kRecompute, SaveAction::kRecompute});
  spans.SetLayer(2, {SaveAction::kRecompute, SaveAction::kKeep});
  ExpectSame(DeepConfig(true), {}, {}, spans);
  ExpectSame(DeepConfig(true), {}, {}, SavePolicy::kRecompute, 256);
  ExpectSame(DeepConfig(false), TinyAdapter(/*dora=*/true, 0.1), {}, SavePolicy::kRecompute);
}

TEST(UpdateInBackwardTest, GivesTheBitsOfEveryOptimizerInEveryTier) {
  for (const OptimizerOptions& optimizer :
       {OptimizerOptions{.kind = OptimizerKind::kAdamW8Bit}, OptimizerOptions{.kind = OptimizerKind::kLion},
        OptimizerOptions{.kind = OptimizerKind::kAdafactor},
        OptimizerOptions{.kind = OptimizerKind::kApollo, .projection_rank = 8, .projection_steps = 2}}) {
    for (const StateTier tier : {StateTier::kDevice, StateTier::kHost, StateTier::kDisk}) {
      OptimizerOptions in_tier = optimizer;
      in_tier.state_tier = tier;
      ExpectSame(DeepConfig(true), {}, in_tier, SavePolicy::kRecompute);
    }
  }
}

// Bytes of gradients alive at each step of the tape; the most of them.
int64_t MostGradientBytes(const Engine& engine) {
  const MemoryPlan& plan = engine.largest().plan.device;
  std::map<int32_t, int64_t> changes;
  for (const PlannedBuffer& buffer : plan.buffers) {
    if (!absl::EndsWith(buffer.name, "#gradient")) continue;
    changes[buffer.first_step] += buffer.bytes;
    changes[buffer.last_step + 1] -= buffer.bytes;
  }
  int64_t most = 0;
  int64_t alive = 0;
  for (const auto& [step, bytes] : changes) most = std::max(most, alive += bytes);
  return most;
}

TEST(UpdateInBackwardTest, GradientsNeverLiveAllAtOnce) {
  DecoderConfig config = DeepConfig(false);
  config.vocab_size = 40;
  OptimizerOptions optimizer;
  TinyModel ordinary(config);
  const Engine all = ordinary.MakeEngine(kTokens, SavePolicy::kRecompute);
  optimizer.in_backward = true;
  TinyModel model(config, {}, optimizer);
  const Engine engine = model.MakeEngine(kTokens, SavePolicy::kRecompute);
  EXPECT_EQ(engine.update(), nullptr);
  int64_t of_layer = 0;
  for (StoreId id : ordinary.store().Trainable()) {
    const StoreEntry& entry = ordinary.store().entry(id);
    if (absl::StartsWith(entry.name, "model.layers.0.")) of_layer += (entry.bytes + 63) / 64 * 64;
  }
  EXPECT_GT(MostGradientBytes(engine), 0);
  EXPECT_LE(MostGradientBytes(engine), of_layer);
  const int64_t gradients = ordinary.store().BytesOf(Category::kGradients);
  EXPECT_GT(gradients, 5 * of_layer);
  EXPECT_LE(model.store().ResidentBytes() + engine.arena_bytes(),
            ordinary.store().ResidentBytes() + all.arena_bytes() - gradients + of_layer);
}

TEST(UpdateInBackwardTest, AGradientThatIsNotFiniteLeavesItsParameter) {
  OptimizerOptions optimizer;
  optimizer.in_backward = true;
  const DecoderConfig config = DeepConfig(false);
  TinyModel model(config, {}, optimizer);
  // What lies below the output layer gets gradients that are NaN.
  const StoreId head = model.store().Find("lm_head.weight");
  model.store().vector(head)[0] = INFINITY;
  const std::vector<float> before = Everything(model.store());
  Engine engine(&model.decoder(), &model.store(), OptionsOf(optimizer, SavePolicy::kKeep));
  const Batch batch = RandomSample(50, 1, 67);
  double norm = 0;
  engine.TrainAndUpdate(batch, 0.02f, 0, 1e-3, 1, &norm);
  EXPECT_FALSE(std::isfinite(norm));
  const std::vector<float> after = Everything(model.store());
  const auto is_bad = [](float value) { return !std::isfinite(value); };
  EXPECT_EQ(std::count_if(before.begin(), before.end(), is_bad), 1);
  EXPECT_EQ(std::count_if(after.begin(), after.end(), is_bad), 1) << "it spreads to no parameter and no moment";
  const int64_t embedding = config.vocab_size * config.hidden_dim;
  EXPECT_TRUE(std::equal(before.begin(), before.begin() + embedding, after.begin()));
}

}  // namespace
}  // namespace thimble
