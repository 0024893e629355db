// Training checkpoints: every bit comes back, damage and strangers are refused, old files go.
#include "trainer/checkpoint.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "data/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

RunIdentity Identity() { return {"model: tiny\nlearning_rate: 0.1\n", "0badcafe", "12345678", "f32", "alpaca"}; }

TrainState State() {
  TrainState state;
  state.step = 7;
  state.micro_step = 28;
  state.position = {.epoch = 2, .index = 5};
  state.tokens = int64_t{1} << 40;
  state.targets = 12345;
  state.seconds = 1.0 / 3;
  state.loss_before = 3.25;
  state.last_eval_loss = std::numeric_limits<double>::denorm_min();
  state.best_eval_loss = 2.5;
  state.best_step = 4;
  state.evaluations_without_gain = 3;
  return state;
}

// Parameters and moments, not gradients.
std::vector<float> Saved(Store* store) {
  std::vector<float> all;
  for (StoreId id : store->Trainable()) {
    const StoreEntry& entry = store->entry(id);
    const auto add = [&](StoreId tensor) {
      const Vector v = store->vector(tensor);
      all.insert(all.end(), v.data, v.data + v.size);
    };
    add(id);
    for (StoreId state : entry.state) add(state);
  }
  return all;
}

class CheckpointTest : public testing::Test {
 protected:
  CheckpointTest() : model_(TinyConfig(), TinyAdapter(/*dora=*/true)) {
    Engine engine = model_.MakeEngine(64);
    for (int64_t step = 1; step <= 3; ++step) {
      GradientsOf(&engine, {RandomSample(20, static_cast<uint64_t>(step), 67)});
      engine.Update(1e-2, step);
    }
    fs::create_directories(folder_ / "checkpoints");
    path_ = CheckpointPath(folder_.path(), 7);
  }

  void Save() { ASSERT_TRUE(SaveCheckpoint(path_, model_.store(), State(), Identity()).ok()); }

  TempFolder folder_;
  TinyModel model_;
  std::string path_;
};

TEST_F(CheckpointTest, EveryBitComesBack) {
  Save();
  TinyModel fresh(TinyConfig(), TinyAdapter(/*dora=*/true));
  ASSERT_NE(Saved(&model_.store()), Saved(&fresh.store()));
  const auto loaded = LoadCheckpoint(path_, Identity(), &fresh.store());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(Saved(&model_.store()), Saved(&fresh.store()));
  const TrainState state = State();
  EXPECT_EQ(loaded->step, state.step);
  EXPECT_EQ(loaded->micro_step, state.micro_step);
  EXPECT_EQ(loaded->position.epoch, state.position.epoch);
  EXPECT_EQ(loaded->position.index, state.position.index);
  EXPECT_EQ(loaded->tokens, state.tokens);
  EXPECT_EQ(loaded->targets, state.targets);
  EXPECT_EQ(loaded->seconds, state.seconds);
  EXPECT_EQ(loaded->loss_before, state.loss_before);
  EXPECT_EQ(loaded->last_eval_loss, state.last_eval_loss);
  EXPECT_EQ(loaded->best_eval_loss, state.best_eval_loss);
  EXPECT_EQ(loaded->best_step, state.best_step);
  EXPECT_EQ(loaded->evaluations_without_gain, state.evaluations_without_gain);

  const auto identity = ReadCheckpointIdentity(path_);
  ASSERT_TRUE(identity.ok()) << identity.status();
  EXPECT_EQ(identity->recipe, Identity().recipe);
  EXPECT_EQ(identity->compute, "f32");
}

TEST_F(CheckpointTest, ResumedTrainingRepeatsTheBits) {
  Save();
  TinyModel resumed(TinyConfig(), TinyAdapter(/*dora=*/true));
  ASSERT_TRUE(LoadCheckpoint(path_, Identity(), &resumed.store()).ok());
  for (TinyModel* model : {&model_, &resumed}) {
    Engine engine = model->MakeEngine(64);
    GradientsOf(&engine, {RandomSample(20, 9, 67)});
    engine.Update(1e-2, 4);
  }
  EXPECT_EQ(Saved(&model_.store()), Saved(&resumed.store()));
}

TEST_F(CheckpointTest, TensorsAloneLeaveTheMoments) {
  Save();
  TinyModel fresh(TinyConfig(), TinyAdapter(/*dora=*/true));
  ASSERT_TRUE(LoadCheckpointTensors(path_, &fresh.store()).ok());
  for (StoreId id : fresh.store().Trainable()) {
    const Vector found = fresh.store().vector(id);
    const Vector expected = model_.store().vector(id);
    EXPECT_TRUE(std::equal(found.data, found.data + found.size, expected.data)) << fresh.store().entry(id).name;
    EXPECT_EQ(fresh.store().vector(fresh.store().entry(id).state[0])[0], 0);
  }
}

TEST_F(CheckpointTest, AnotherRunIsRefusedWithTheDifference) {
  Save();
  const auto refusal = [&](const RunIdentity& now) {
    const std::vector<float> before = Saved(&model_.store());
    const auto loaded = LoadCheckpoint(path_, now, &model_.store());
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kFailedPrecondition) << loaded.status();
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(path_));
    EXPECT_EQ(before, Saved(&model_.store())) << "a refused file must not touch the store";
    return std::string(loaded.status().message());
  };
  RunIdentity now = Identity();
  now.recipe = "model: tiny\nlearning_rate: 0.2\n";
  EXPECT_THAT(refusal(now), HasSubstr("the recipe differs: learning_rate was 0.1, is 0.2"));
  now = Identity();
  now.recipe += "seed: 3\n";
  EXPECT_THAT(refusal(now), HasSubstr("seed was not given, is 3"));
  now = Identity();
  now.base_fingerprint = "feedbeef";
  EXPECT_THAT(refusal(now), HasSubstr("the base model differs: fingerprint was 0badcafe, is feedbeef"));
  now = Identity();
  now.data_fingerprint = "87654321";
  EXPECT_THAT(refusal(now), HasSubstr("the training data differ: fingerprint was 12345678, is 87654321"));
  now = Identity();
  now.compute = "bf16";
  EXPECT_THAT(refusal(now), HasSubstr("compute was f32, is bf16"));
}

TEST_F(CheckpointTest, DamageIsDataLossThatNamesTheFile) {
  Save();
  const std::string whole = ReadFile(path_).value();
  const auto expect_loss = [&](const std::string& content, const std::string& what) {
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << content;
    const auto loaded = LoadCheckpoint(path_, Identity(), &model_.store());
    EXPECT_EQ(loaded.status().code(), absl::StatusCode::kDataLoss) << what << ": " << loaded.status();
    EXPECT_THAT(std::string(loaded.status().message()), HasSubstr(path_)) << what;
    EXPECT_FALSE(ReadCheckpointIdentity(path_).ok()) << what;
    EXPECT_FALSE(LoadCheckpointTensors(path_, &model_.store()).ok()) << what;
  };
  for (const double part : {0.0, 0.01, 0.5, 0.999}) {
    const size_t size = static_cast<size_t>(part * static_cast<double>(whole.size()));
    expect_loss(whole.substr(0, size), "cut to " + std::to_string(size));
  }
  expect_loss(whole + "x", "one byte too many");
  for (size_t i = 0; i < 23; ++i) {
    std::string flipped = whole;
    const size_t at = i * (whole.size() - 1) / 22;
    flipped[at] = static_cast<char>(flipped[at] ^ (1 << (i % 8)));
    expect_loss(flipped, "a bit changed at " + std::to_string(at));
  }
}

TEST_F(CheckpointTest, AFileOfAnotherModelLacksATensorOrItsShape) {
  Save();
  AdapterOptions wider = TinyAdapter(/*dora=*/true);
  wider.rank = 4;
  TinyModel other(TinyConfig(), wider);
  const auto shape = LoadCheckpoint(path_, Identity(), &other.store());
  EXPECT_EQ(shape.status().code(), absl::StatusCode::kDataLoss) << shape.status();
  EXPECT_THAT(std::string(shape.status().message()), HasSubstr("q_proj.lora_A"));
  DecoderConfig deeper = TinyConfig();
  deeper.num_layers = 3;
  deeper.windows = {0, 0, 0};
  TinyModel deep(deeper, TinyAdapter(/*dora=*/true));
  const auto missing = LoadCheckpoint(path_, Identity(), &deep.store());
  EXPECT_EQ(missing.status().code(), absl::StatusCode::kDataLoss) << missing.status();
  EXPECT_THAT(std::string(missing.status().message()), HasSubstr("model.layers.2."));
  EXPECT_EQ(LoadCheckpoint(folder_ / "none.h5", Identity(), &model_.store()).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(CheckpointTest, PruningKeepsTheLastAndTheBest) {
  for (const int64_t step : {1, 2, 3, 4, 10, 200}) {
    ASSERT_TRUE(SaveCheckpoint(CheckpointPath(folder_.path(), step), model_.store(), State(), Identity()).ok());
  }
  const std::string leftover = folder_ / "checkpoints/step-00000201.h5.tmp";
  std::ofstream(leftover) << "half";
  std::ofstream(folder_ / "checkpoints/notes.txt") << "mine";
  EXPECT_THAT(ListCheckpoints(folder_.path()), ElementsAre(1, 2, 3, 4, 10, 200))
      << "an unfinished file is no checkpoint";
  PruneCheckpoints(folder_.path(), 2, 3);
  EXPECT_THAT(ListCheckpoints(folder_.path()), ElementsAre(3, 10, 200));
  EXPECT_FALSE(fs::exists(leftover));
  EXPECT_TRUE(fs::exists(folder_ / "checkpoints/notes.txt"));
  PruneCheckpoints(folder_.path(), 0, -1);
  EXPECT_THAT(ListCheckpoints(folder_.path()), ElementsAre(200)) << "the newest always stays";
  EXPECT_THAT(ListCheckpoints(folder_ / "elsewhere"), ElementsAre());
  PruneCheckpoints(folder_ / "elsewhere", 1, -1);
}

TEST_F(CheckpointTest, UnwritableFolderIsAnErrorAndLeavesNothing) {
  std::ofstream(folder_ / "file") << "not a folder";
  const absl::Status status = SaveCheckpoint(folder_ / "file/step.h5", model_.store(), State(), Identity());
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr("file/step.h5"));
  EXPECT_FALSE(SaveCheckpoint(folder_ / "absent/step.h5", model_.store(), State(), Identity()).ok());
  EXPECT_EQ(ReadFile(folder_ / "file").value(), "not a folder");
  // A folder stands where the file should go: the half-written neighbour must be gone.
  fs::create_directories(folder_ / "taken.h5/inside");
  EXPECT_FALSE(SaveCheckpoint(folder_ / "taken.h5", model_.store(), State(), Identity()).ok());
  EXPECT_FALSE(fs::exists(folder_ / "taken.h5.tmp"));
}

}  // namespace
}  // namespace thimble
