// Runs that are killed, interrupted, resumed or fail halfway come to the bits of a run that was left alone.
#include <cstdlib>
#include <random>

#include "tests/cli/compare_runs.h"
#include "tests/cli/tiny_job.h"

namespace thimble {
namespace {

class ResumedRun : public TinyJob {
 protected:
  // An unbroken run in `folder`.
  double Unbroken(const std::string& folder, std::vector<std::string> settings = {}) {
    settings.push_back("output.folder=" + Path(folder));
    const ProgramResult result = Train(settings);
    EXPECT_EQ(result.exit_code, 0) << result.errors;
    return result.seconds;
  }
  // As if the process had died some time after the checkpoint of this step.
  void GoBackTo(const std::string& run, int64_t step) const {
    for (const int64_t saved : ListCheckpoints(Path(run))) {
      if (saved > step) std::filesystem::remove(CheckpointPath(Path(run), saved));
    }
  }
};

TEST_F(ResumedRun, SlowTwentyKillsChangeNoBit) {
  const double seconds = Unbroken("whole");
  const auto expected = Metrics(Path("whole"));
  ASSERT_EQ(expected.size(), 30u + 6u);  // evaluations at 0, 7, 14, 21, 28, 30
  std::mt19937 random(20240229);
  int kills = 0;
  for (int run = 0; kills < 20; ++run) {
    const std::string folder = "killed" + std::to_string(run);
    for (bool done = false; !done;) {
      const bool begun = std::filesystem::exists(Path(folder + "/recipe.yaml"));
      const std::vector<std::string> resume = {"train", "--resume", Path(folder)};
      const std::vector<std::string> train = {"train", Path("recipe.yaml"), "--set", "output.folder=" + Path(folder)};
      Program program(begun ? resume : train, Path("errors.txt"));
      const double delay = kills < 20 ? std::uniform_real_distribution<>(0, 1.1 * seconds)(random) : 1e9;
      const auto start = std::chrono::steady_clock::now();
      while (!program.Ended() && std::chrono::steady_clock::now() - start < std::chrono::duration<double>(delay)) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      program.Signal(SIGKILL);
      const ProgramResult result = program.Wait();
      done = result.signal == 0;
      kills += done ? 0 : 1;
      if (done) {
        ASSERT_EQ(result.exit_code, 0) << result.errors;
      }
    }
    // The recipe is part of a checkpoint, the run's folder is not.
    ExpectSameEnd(Path("whole"), Path(folder));
    EXPECT_EQ(Metrics(Path(folder)), expected);
    for (const std::string& file : Files()) EXPECT_FALSE(file.ends_with(".tmp")) << file;
    std::filesystem::remove_all(Path(folder));
  }
}

TEST_F(ResumedRun, ThreadsAndSavePolicyChangeNoBit) {
  Unbroken("one");
  const auto expected = Metrics(Path("one"));
  Unbroken("two", {"training.threads=2"});
  ExpectSameEnd(Path("one"), Path("two"));
  EXPECT_EQ(Metrics(Path("two")), expected);
  Unbroken("recomputed", {"memory.activations=recompute"});
  ExpectSameEnd(Path("one"), Path("recomputed"), /*with_identity=*/false);
  EXPECT_EQ(Metrics(Path("recomputed")), expected);
}

TEST_F(ResumedRun, WithATeacherChangesNoBitAndAnotherTeacherIsRefused) {
  std::filesystem::copy(Path("base"), Path("teacher"));
  const std::vector<std::string> taught = {"distillation.teacher=" + Path("teacher"), "distillation.weight=0.7",
                                           "distillation.direction=symmetric", "distillation.weights=disk",
                                           "training.keep_last=100"};
  Unbroken("whole", taught);
  Unbroken("run", taught);
  GoBackTo("run", 9);
  const ProgramResult result = ResumeRun("run");
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  ExpectSameEnd(Path("whole"), Path("run"));
  EXPECT_EQ(Metrics(Path("run")), Metrics(Path("whole")));
  GoBackTo("run", 9);
  std::string weights = tensors_.Bytes();
  weights[weights.size() - 4000] ^= 1;
  Write("teacher/model.safetensors", weights);
  EXPECT_EQ(ResumeRun("run").exit_code, 2);
}

TEST_F(ResumedRun, ForAFormatChangesNoBit) {
  const std::vector<std::string> qat = {"qat.format=q8_0", "qat.start_step=3", "qat.activations=int8",
                                        "adapter.dropout=0", "training.keep_last=100"};
  Unbroken("whole", qat);
  for (const int64_t step : {2, 9}) {
    Unbroken("run", qat);
    GoBackTo("run", step);
    const ProgramResult result = ResumeRun("run");
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    ExpectSameEnd(Path("whole"), Path("run"));
    EXPECT_EQ(Metrics(Path("run")), Metrics(Path("whole")));
    std::filesystem::remove_all(Path("run"));
  }
}

TEST_F(ResumedRun, SignalsSaveAndExit130) {
  Unbroken("whole");
  for (const int signal : {SIGINT, SIGTERM}) {
    ProgramResult result;
    // On a busy machine a run may be over before the signal comes.
    for (int attempt = 0; attempt < 10 && result.exit_code != 130; ++attempt) {
      std::filesystem::remove_all(Path("run"));
      Program program({"train", Path("recipe.yaml")}, Path("errors.txt"));
      while (!program.Ended()) {
        if (FileContent(Path("run/metrics.jsonl")).find("\"step\":4,") != std::string::npos) break;
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
      program.Signal(signal);
      result = program.Wait();
    }
    ASSERT_EQ(result.exit_code, 130) << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find("--resume"), std::string::npos) << result.errors;
    const std::vector<int64_t> steps = ListCheckpoints(Path("run"));
    ASSERT_FALSE(steps.empty());
    EXPECT_GE(steps.back(), 4);
    result = ResumeRun("run");
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    ExpectSameEnd(Path("whole"), Path("run"));
    EXPECT_EQ(Metrics(Path("run")), Metrics(Path("whole")));
  }
}

TEST_F(ResumedRun, FullDiskKeepsThePreviousCheckpoint) {
  Unbroken("whole");
  Unbroken("run", {"training.save_every=3", "training.keep_last=100"});
  GoBackTo("run", 9);
  const auto size = std::filesystem::file_size(CheckpointPath(Path("run"), 9));
  ProgramResult result = ResumeRun("run", size - 1);
  EXPECT_EQ(result.exit_code, 1) << result.errors;
  EXPECT_EQ(result.Messages(), 1) << result.errors;
  EXPECT_NE(result.errors.find("step-00000012.h5"), std::string::npos) << result.errors;
  EXPECT_NE(result.errors.find("go on with"), std::string::npos) << result.errors;
  EXPECT_EQ(ListCheckpoints(Path("run")).back(), 9);
  for (const std::string& file : Files()) EXPECT_FALSE(file.ends_with(".tmp")) << file;
  result = ResumeRun("run");
  ASSERT_EQ(result.exit_code, 0) << result.errors;
  ExpectSameEnd(Path("whole"), Path("run"), /*with_identity=*/false);
  EXPECT_EQ(Metrics(Path("run")), Metrics(Path("whole")));
}

TEST_F(ResumedRun, FullDiskAtTheExportKeepsTheRun) {
  // A vocabulary that makes the merged model larger than a checkpoint ever is, and a limit between the two.
  RawTensors large;
  large.Add("model.embed_tokens.weight", {2000, 32}, 0, 1);
  for (const auto& [name, tensor] : tensors_.header.items()) {
    if (name == "model.embed_tokens.weight") continue;
    const std::vector<size_t> offsets = tensor["data_offsets"];
    large.header[name] = tensor;
    large.header[name]["data_offsets"] = {large.data.size(), large.data.size() + offsets[1] - offsets[0]};
    large.data += tensors_.data.substr(offsets[0], offsets[1] - offsets[0]);
  }
  Write("base/model.safetensors", large.Bytes());
  config_["vocab_size"] = 2000;
  Write("base/config.json", config_.dump());
  ProgramResult result = Run({"train", Path("recipe.yaml"), "--set", "adapter.targets=[q_proj]"}, 250000);
  EXPECT_EQ(result.exit_code, 1) << result.errors;
  EXPECT_EQ(result.Messages(), 1) << result.errors;
  EXPECT_NE(result.errors.find("the checkpoint of step 30 is kept, go on with: thimble train --resume"),
            std::string::npos)
      << result.errors;
  for (const std::string& file : Files()) EXPECT_EQ(file.find("run/model"), std::string::npos) << file;
  result = ResumeRun("run");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_TRUE(std::filesystem::exists(Path("run/model/model.safetensors")));
}

TEST_F(ResumedRun, OfAnotherRecipeBaseOrDataIsRefused) {
  Unbroken("run", {"training.keep_last=100"});
  GoBackTo("run", 9);
  const auto refused = [this](const std::string& what) {
    const auto before = Files();
    const ProgramResult result = ResumeRun("run");
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find(what), std::string::npos) << what << " not in: " << result.errors;
    EXPECT_EQ(Files(), before);
  };
  const std::string recipe = FileContent(Path("run/recipe.yaml"));
  std::string changed = recipe;
  const size_t rate = changed.find("learning_rate: 0.01");
  ASSERT_NE(rate, std::string::npos);
  changed.replace(rate, 19, "learning_rate: 0.02");
  Write("run/recipe.yaml", changed);
  refused("optimizer.learning_rate was 0.01, is 0.02");
  Write("run/recipe.yaml", recipe);

  std::string weights = tensors_.Bytes();
  weights[weights.size() - 4000] ^= 1;
  Write("base/model.safetensors", weights);
  refused("the base model differs");
  Write("base/model.safetensors", tensors_.Bytes());

  Write("train.jsonl", Rows(40, 2));
  refused("the training data differ");
  Write("train.jsonl", Rows(40, 1));
  EXPECT_EQ(ResumeRun("run").exit_code, 0);
}

TEST_F(ResumedRun, FromADamagedCheckpointNamesItAndTheWayOn) {
  Unbroken("whole");
  Unbroken("run", {"training.keep_last=100"});
  const std::string newest = CheckpointPath(Path("run"), 30);
  const std::string content = FileContent(newest);
  std::mt19937 random(7);
  const auto refused = [&] {
    const ProgramResult result = ResumeRun("run");
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find("thimble: " + newest), std::string::npos) << result.errors;
    EXPECT_NE(result.errors.find("step-00000028.h5"), std::string::npos) << result.errors;
  };
  for (const size_t size : {size_t{0}, size_t{100}, size_t{512}, content.size() / 2, content.size() - 1}) {
    std::ofstream(newest, std::ios::binary) << content.substr(0, size);
    refused();
  }
  for (int i = 0; i < 6; ++i) {
    std::string flipped = content;
    flipped[i == 0 ? 3 : random() % flipped.size()] ^= static_cast<char>(1 << (random() % 8));
    std::ofstream(newest, std::ios::binary) << flipped;
    refused();
  }
  std::filesystem::remove(newest);
  const ProgramResult result = ResumeRun("run");
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  ExpectSameEnd(Path("whole"), Path("run"), /*with_identity=*/false);
  EXPECT_EQ(Metrics(Path("run")), Metrics(Path("whole")));
}

TEST_F(ResumedRun, KeepsTheCountOfEvaluationsWithoutGain) {
  // A rate of 0 never gains: the evaluations at 2, 4 and 6 are the third without.
  const std::vector<std::string> settings = {"optimizer.learning_rate=0", "training.eval_every=2",
                                             "training.early_stopping=3", "training.save_every=1",
                                             "training.keep_last=100"};
  Unbroken("run", settings);
  const auto expected = Metrics(Path("run"));
  EXPECT_EQ(expected.size(), 6u + 4u);
  for (const int64_t step : {5, 4, 3, 1, 6}) {
    GoBackTo("run", step);
    const ProgramResult result = ResumeRun("run");
    ASSERT_EQ(result.exit_code, 0) << result.errors;
    EXPECT_EQ(Metrics(Path("run")), expected) << "resumed after " << step;
    const nlohmann::json summary = ReadJson("run/summary.json");
    EXPECT_EQ(summary["stopped_early"], true);
    EXPECT_EQ(summary["steps"], 6);
    EXPECT_GT(summary["train_loss"], 0.0);
  }
}

TEST_F(ResumedRun, KeepsTheBestCheckpoint) {
  // Too high a rate, rising: an early evaluation stays the best.
  Unbroken("run", {"optimizer.learning_rate=0.5", "training.eval_every=1", "training.save_every=1",
                   "training.keep_last=1", "optimizer.max_grad_norm=0"});
  const nlohmann::json summary = ReadJson("run/summary.json");
  const int64_t best = summary["best_step"];
  std::vector<int64_t> kept = {30};
  if (best > 0 && best < 30) kept.insert(kept.begin(), best);
  EXPECT_EQ(ListCheckpoints(Path("run")), kept);
  EXPECT_LT(best, 30);
  ASSERT_EQ(ResumeRun("run").exit_code, 0);
  EXPECT_EQ(ListCheckpoints(Path("run")), kept);
  EXPECT_EQ(ReadJson("run/summary.json")["best_step"], best);
}

TEST_F(ResumedRun, ASecondProcessIsKeptAwayFromTheFolder) {
  const std::vector<std::string> train = {"train", Path("recipe.yaml"), "--set", "training.steps=1000000"};
  const std::vector<std::string> resume = {"train", "--resume", Path("run")};
  const auto wait_for = [this](const std::string& file) {
    for (int i = 0; i < 2000 && !std::filesystem::exists(Path(file)); ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return std::filesystem::exists(Path(file));
  };
  const auto expect_refused = [this](const std::vector<std::string>& arguments) {
    const std::string recipe = FileContent(Path("run/recipe.yaml"));
    const ProgramResult second = Run(arguments);
    EXPECT_EQ(second.exit_code, 2) << second.errors;
    EXPECT_EQ(second.Messages(), 1) << second.errors;
    EXPECT_NE(second.errors.find(" works in this run folder"), std::string::npos) << second.errors;
    EXPECT_NE(second.errors.find(FileContent(Path("run/run.lock"))), std::string::npos) << second.errors;
    EXPECT_EQ(FileContent(Path("run/recipe.yaml")), recipe);
  };
  {
    Program first(train, Path("first.txt"));
    ASSERT_TRUE(wait_for("run/checkpoints/step-00000003.h5"));
    expect_refused(resume);
    expect_refused(train);
    EXPECT_FALSE(first.Ended());
    first.Signal(SIGKILL);
    first.Wait();
  }
  // The lock ended with the process.
  Program next(resume, Path("first.txt"));
  ASSERT_TRUE(wait_for("run/checkpoints/step-00000021.h5")) << FileContent(Path("first.txt"));
  expect_refused(resume);
  next.Signal(SIGINT);
  const ProgramResult result = next.Wait();
  EXPECT_EQ(result.exit_code, 130) << result.errors;
  EXPECT_FALSE(std::filesystem::exists(Path("run/run.lock")));
}

TEST_F(ResumedRun, AnExportAboveItsLimitLeavesNoFolder) {
  // Rounding to bf16 moves the distributions.
  ProgramResult result = Train({"training.steps=3", "output.export.dtype=bf16", "output.export.max_kl=0"});
  EXPECT_EQ(result.exit_code, 1) << result.errors;
  EXPECT_EQ(result.Messages(), 1) << result.errors;
  EXPECT_NE(result.errors.find("output.export.max_kl allows 0"), std::string::npos) << result.errors;
  EXPECT_NE(result.errors.find("thimble export " + Path("run")), std::string::npos) << result.errors;
  for (int sitting = 0; sitting < 2; ++sitting) {
    for (const std::string& file : Files()) EXPECT_EQ(file.find("run/model"), std::string::npos) << file;
    const nlohmann::json summary = ReadJson("run/summary.json");
    EXPECT_EQ(summary["export"]["accepted"], false);
    EXPECT_TRUE(summary["export"]["path"].is_null());
    EXPECT_GT(summary["export"]["mean_kl"].get<double>(), 0);
    // A later sitting has nothing to train, and refuses again; a folder of an earlier one does not stay.
    std::filesystem::create_directories(Path("run/model"));
    result = ResumeRun("run");
    EXPECT_EQ(result.exit_code, 1) << result.errors;
  }
  EXPECT_EQ(Run({"export", Path("run"), "--max_kl=1", "--out=" + Path("merged")}).exit_code, 0);
}

TEST_F(ResumedRun, MeasuredMemoryIsThePlanned) {
  for (const char* activations : {"keep", "recompute"}) {
    Unbroken(activations, {std::string("memory.activations=") + activations});
    const nlohmann::json memory = ReadJson(std::string(activations) + "/summary.json")["memory"];
    EXPECT_GT(memory["device"]["planned_bytes"], 0);
    EXPECT_EQ(memory["device"]["planned_bytes"], memory["device"]["measured_bytes"]);
    const int64_t planned = memory["process"]["planned_bytes"];
    const int64_t measured = memory["process"]["measured_bytes"];
#ifdef __SANITIZE_ADDRESS__
    constexpr int64_t kAbove = int64_t{512} << 20;  // shadow memory, and freed blocks that are held back
#else
    constexpr int64_t kAbove = int64_t{64} << 20;
#endif
    EXPECT_LE(std::abs(planned - measured), kAbove) << planned << " " << measured;
  }
}

}  // namespace
}  // namespace thimble
