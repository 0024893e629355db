// Every optimiser end to end on a tiny model: the bytes of its state, checkpoints, threads, and that it learns.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/checkpoint.h"
#include "trainer/optimizer_state.h"

namespace thimble {
namespace {

constexpr int64_t kVocab = 67;

// Wide enough that some tensors have 4,096 elements and some have not.
DecoderConfig WideConfig() {
  DecoderConfig config = TinyConfig();
  config.hidden_dim = 72;
  config.head_dim = 18;
  config.intermediate_dim = 100;
  return config;
}

struct Case {
  OptimizerOptions options;
  double learning_rate;
};

std::vector<Case> Cases() {
  OptimizerOptions adamw8bit = {.kind = OptimizerKind::kAdamW8Bit, .weight_decay = 0.01};
  OptimizerOptions grid = adamw8bit;
  grid.moment_rounding = MomentRounding::kGrid;
  return {
      {{.kind = OptimizerKind::kAdamW, .weight_decay = 0.01}, 3e-3},
      {adamw8bit, 3e-3},
      {grid, 3e-3},
      {{.kind = OptimizerKind::kLion, .beta2 = 0.99, .weight_decay = 0.01}, 5e-4},
      {{.kind = OptimizerKind::kAdafactor, .weight_decay = 0.01}, 3e-3},
      {{.kind = OptimizerKind::kApollo, .eps = 1e-6, .weight_decay = 0.01, .projection_rank = 8, .projection_steps = 2},
       3e-3},
  };
}

// Parameters and optimiser state, as bits.
std::vector<float> Everything(const Store& store) {
  std::vector<float> all;
  for (StoreId id : store.Trainable()) {
    std::vector<StoreId> tensors = store.entry(id).state;
    tensors.push_back(id);
    for (StoreId tensor : tensors) {
      const Vector v = store.vector(tensor);
      all.insert(all.end(), v.data, v.data + v.size);
    }
  }
  return all;
}

bool SameBits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// Returns the loss a target before the last step.
double Train(TinyModel* model, int64_t first_step, int64_t last_step, double learning_rate) {
  Engine engine = model->MakeEngine(64);
  double loss = 0;
  const Batch batch = RandomSample(40, 3, kVocab);
  for (int64_t step = first_step; step <= last_step; ++step) {
    GradientsOf(&engine, {batch}, &loss);
    engine.Update(learning_rate, step);
  }
  return loss / static_cast<double>(batch.num_targets);
}

class OptimizerTest : public testing::TestWithParam<Case> {
 protected:
  void TearDown() override { SetNumThreads(2); }
};

TEST_P(OptimizerTest, LearnsASampleByHeart) {
  SetNumThreads(1);
  for (const bool full : {true, false}) {
    TinyModel model(WideConfig(), full ? AdapterOptions() : TinyAdapter(), GetParam().options);
    const double before = Train(&model, 1, 1, GetParam().learning_rate);
    const double after = Train(&model, 2, 60, GetParam().learning_rate);
    EXPECT_LT(after, (full ? 0.5 : 0.9) * before) << "full " << full;
  }
}

TEST_P(OptimizerTest, SameBitsForAnyThreadCount) {
  const auto run = [&](int threads) {
    SetNumThreads(threads);
    TinyModel model(WideConfig(), {}, GetParam().options);
    Train(&model, 1, 4, GetParam().learning_rate);
    return Everything(model.store());
  };
  EXPECT_TRUE(SameBits(run(1), run(2)));
}

TEST_P(OptimizerTest, ResumeFromACheckpointRepeatsTheBits) {
  SetNumThreads(1);
  TempFolder folder;
  const std::string path = folder / "step.h5";
  const RunIdentity identity = {"a: 1\n", "b", "d", "f32"};
  TinyModel whole(WideConfig(), {}, GetParam().options);
  Train(&whole, 1, 3, GetParam().learning_rate);
  ASSERT_TRUE(SaveCheckpoint(path, whole.store(), {}, identity).ok());
  TinyModel resumed(WideConfig(), {}, GetParam().options);
  ASSERT_TRUE(LoadCheckpoint(path, identity, &resumed.store()).ok());
  ASSERT_TRUE(SameBits(Everything(whole.store()), Everything(resumed.store())));
  Train(&whole, 4, 6, GetParam().learning_rate);
  Train(&resumed, 4, 6, GetParam().learning_rate);
  EXPECT_TRUE(SameBits(Everything(whole.store()), Everything(resumed.store())));
}

TEST_P(OptimizerTest, GradientThatIsNotFiniteChangesNothing) {
  TinyModel model(WideConfig(), {}, GetParam().options);
  Train(&model, 1, 2, GetParam().learning_rate);
  const std::vector<float> before = Everything(model.store());
  Engine engine = model.MakeEngine(64);
  GradientsOf(&engine, {RandomSample(20, 1, kVocab)});
  const StoreId first = model.store().Trainable().front();
  model.store().vector(model.store().entry(first).gradient)[0] = std::nanf("");
  EXPECT_FALSE(std::isfinite(engine.Update(1e-3, 3)));
  EXPECT_TRUE(SameBits(before, Everything(model.store())));
}

INSTANTIATE_TEST_SUITE_P(All, OptimizerTest, testing::ValuesIn(Cases()), [](const testing::TestParamInfo<Case>& info) {
  std::string name(NameOf(info.param.options.kind));
  if (info.param.options.moment_rounding == MomentRounding::kGrid) name += "_grid";
  return name;
});

// Bytes of the state by hand: n elements, or blocks of 256 with two codes an element and two floats a block.
TEST(OptimizerStateTest, BytesAreExact) {
  const auto bytes = [](OptimizerKind kind, int64_t rows, int64_t cols) {
    Store store;
    store.MakeTrainable(store.Add("w", rows, cols, Category::kParameters), true);
    DeclareOptimizerState({.kind = kind}, &store);
    return store.BytesOf(Category::kMoments);
  };
  EXPECT_EQ(bytes(OptimizerKind::kAdamW, 3, 5), 2 * 4 * 15);
  EXPECT_EQ(bytes(OptimizerKind::kAdamW8Bit, 63, 65), 2 * 4 * 63 * 65);
  EXPECT_EQ(bytes(OptimizerKind::kAdamW8Bit, 64, 64), 2 * 4096 + 2 * 4 * 16);
  EXPECT_EQ(bytes(OptimizerKind::kAdamW8Bit, 3, 1367), 2 * 4104 + 2 * 4 * 17);  // 4,101 codes in whole floats
  EXPECT_EQ(bytes(OptimizerKind::kLion, 3, 5), 4 * 15);
  EXPECT_EQ(bytes(OptimizerKind::kAdafactor, 3, 5), 4 * (3 + 5));
  EXPECT_EQ(bytes(OptimizerKind::kAdafactor, 1, 5), 4 * 5);
  EXPECT_EQ(bytes(OptimizerKind::kApollo, 128, 500), 2 * 4 * 128 * 500);
  EXPECT_EQ(bytes(OptimizerKind::kApollo, 200, 500), 2 * 4 * 128 * 500 + 4);
  EXPECT_EQ(bytes(OptimizerKind::kApollo, 500, 200), 2 * 4 * 128 * 500 + 4);
}

}  // namespace
}  // namespace thimble
