// thimble train: which checkpoints stay, when a run stops early, and which weights are exported.
#include <algorithm>
#include <cmath>
#include <set>
#include <sstream>

#include "data/file.h"
#include "tests/recipes/small_model.h"
#include "trainer/checkpoint.h"

namespace thimble {
namespace {

class TrainCommandTest : public SmallModelTest {
 protected:
  void SetUp() override {
    SmallModelTest::SetUp();
    Write("held.jsonl",
          "{\"prompt\": \"who has it?\", \"completion\": \"nobody has it.\"}\n"
          "{\"prompt\": \"when?\", \"completion\": \"at night.\"}\n");
  }
  // Rows that are soon known by heart, so that the held-out loss falls and rises again.
  int Train(const std::vector<std::string>& settings) {
    std::vector<std::string> words = {"train", Path("recipe.yaml")};
    for (const char* setting :
         {"data.validation_share=0", "training.steps=60", "training.eval_every=2", "optimizer.learning_rate=0.05",
          "schedule.type=constant", "output.export.format=merged", "output.export.dtype=f32"}) {
      words.insert(words.end(), {"--set", setting});
    }
    words.insert(words.end(), {"--set", "data.validation=" + Path("held.jsonl")});
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    return Thimble(words);
  }
  nlohmann::json Summary() const { return nlohmann::json::parse(*ReadFile(Path("run/summary.json"))); }
  // Held-out losses by step, as the log has them.
  std::map<int64_t, double> Losses() const {
    std::map<int64_t, double> losses;
    std::istringstream lines(*ReadFile(Path("run/metrics.jsonl")));
    for (std::string line; std::getline(lines, line);) {
      const nlohmann::json json = nlohmann::json::parse(line);
      if (json.contains("eval_loss")) losses[json["step"].get<int64_t>()] = json["eval_loss"].get<double>();
    }
    return losses;
  }
  double LossOf(const std::string& model) {
    EXPECT_EQ(Thimble({"eval", model, "--data=" + Path("held.jsonl"), "--chat_format=plain", "--json"}), 0) << err_;
    return Json().value("loss", -1.0);
  }
  // Steps with a checkpoint after a run of `last` steps: what was saved, as far as it stays.
  static std::vector<int64_t> Kept(const std::map<int64_t, double>& losses, int64_t save_every, size_t keep_last,
                                   bool keep_best, int64_t last) {
    std::set<int64_t> there;
    int64_t best = 0;
    for (int64_t step = 1; step <= last; ++step) {
      const bool new_best = losses.count(step) > 0 && losses.at(step) < losses.at(best);
      if (new_best) best = step;
      if (step % save_every != 0 && step != last && !(new_best && keep_best)) continue;
      there.insert(step);
      const int64_t newest = *there.rbegin();
      while (true) {
        std::vector<int64_t> others(there.begin(), there.end());
        if (others.size() <= keep_last) break;
        others.resize(others.size() - keep_last);
        const auto old = std::find_if(others.begin(), others.end(), [&](int64_t s) { return !keep_best || s != best; });
        if (old == others.end() || *old == newest) break;
        there.erase(*old);
      }
    }
    return {there.begin(), there.end()};
  }
};

TEST_F(TrainCommandTest, StopsEarlyKeepsAndExportsTheBest) {
  ASSERT_EQ(Train({"training.early_stopping=3", "training.save_every=3", "training.keep_last=2"}), 0) << err_;
  const std::map<int64_t, double> losses = Losses();
  const auto best =
      std::min_element(losses.begin(), losses.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  const int64_t last = losses.rbegin()->first;
  // Neither the first nor the last evaluation, or nothing is tested here.
  ASSERT_GT(best->first, 0);
  ASSERT_LT(best->first, 60);
  EXPECT_EQ(last, best->first + 3 * 2) << "three evaluations without gain";
  const nlohmann::json summary = Summary();
  EXPECT_EQ(summary["best_step"], best->first);
  EXPECT_EQ(summary["eval_loss_best"], best->second);
  EXPECT_EQ(summary["eval_loss_after"], losses.at(last));
  EXPECT_EQ(summary["steps"], last);
  EXPECT_EQ(summary["stopped_early"], true);
  EXPECT_EQ(ListCheckpoints(Path("run")), Kept(losses, 3, 2, true, last));
  ASSERT_TRUE(std::filesystem::exists(CheckpointPath(Path("run"), best->first)));

  EXPECT_NEAR(LossOf(Path("run/model")), best->second, 1e-5);
  EXPECT_GT(losses.at(last), best->second + 1e-3);
  // The run as it stands, and its best.
  EXPECT_NEAR(LossOf(Path("run")), losses.at(last), 1e-5);
  ASSERT_EQ(Thimble({"eval", Path("run"), "--best", "--data=" + Path("held.jsonl"), "--json"}), 0) << err_;
  EXPECT_NEAR(Json()["loss"].get<double>(), best->second, 1e-5);
  ASSERT_EQ(Thimble({"export", Path("run"), "--best", "--out=" + Path("again"), "--dtype=f32"}), 0) << err_;
  EXPECT_TRUE(*ReadFile(Path("again/model.safetensors")) == *ReadFile(Path("run/model/model.safetensors")));
  ASSERT_EQ(Thimble({"export", Path("run"), "--out=" + Path("latest"), "--dtype=f32"}), 0) << err_;
  EXPECT_FALSE(*ReadFile(Path("latest/model.safetensors")) == *ReadFile(Path("run/model/model.safetensors")));
}

TEST_F(TrainCommandTest, WithoutKeepBestTheLastIsKeptAndExported) {
  ASSERT_EQ(Train({"training.steps=44", "training.save_every=5", "training.keep_last=3", "training.keep_best=false"}),
            0)
      << err_;
  const std::map<int64_t, double> losses = Losses();
  EXPECT_EQ(losses.size(), 23u);
  const std::vector<int64_t> expected = {35, 40, 44};
  EXPECT_EQ(ListCheckpoints(Path("run")), expected);
  EXPECT_EQ(Kept(losses, 5, 3, false, 44), expected);
  const nlohmann::json summary = Summary();
  EXPECT_LT(summary["eval_loss_best"].get<double>(), losses.at(44) - 1e-3);
  EXPECT_EQ(summary["stopped_early"], false);
  EXPECT_NEAR(LossOf(Path("run/model")), losses.at(44), 1e-5);
}

// Every retention of a run whose best stays: the newest, and the best where it is older.
TEST_F(TrainCommandTest, RetentionIsTheNewestAndTheBest) {
  for (const int64_t keep_last : {1, 2, 4}) {
    std::filesystem::remove_all(Path("run"));
    ASSERT_EQ(Train({"training.steps=31", "training.save_every=4", "training.eval_every=3",
                     "training.keep_last=" + std::to_string(keep_last), "output.export.format=none"}),
              0)
        << err_;
    const std::map<int64_t, double> losses = Losses();
    EXPECT_EQ(losses.rbegin()->first, 31);
    EXPECT_EQ(ListCheckpoints(Path("run")), Kept(losses, 4, static_cast<size_t>(keep_last), true, 31)) << keep_last;
  }
}

TEST_F(TrainCommandTest, ATeacherMustSpeakTheSameTokens) {
  CopyModel("source", "teacher");
  const std::vector<std::string> words = {"train", Path("recipe.yaml"), "--set",
                                          "distillation.teacher=" + Path("teacher")};
  const std::string tokenizer = LetterTokenizerJson();
  std::string other = tokenizer;
  const size_t at = other.find("\"a\":");
  ASSERT_NE(at, std::string::npos);
  other[at + 1] = 'A';
  Write("teacher/tokenizer.json", other);
  EXPECT_EQ(Thimble(words), 2);
  EXPECT_NE(err_.find("expected a teacher with the same tokenizer"), std::string::npos) << err_;
  Write("teacher/tokenizer.json", tokenizer);
  ASSERT_EQ(Thimble(words), 0) << err_;
  // The export is the student alone.
  ASSERT_EQ(Thimble({"export", Path("run"), "--out", Path("merged"), "--json"}), 0) << err_;
  EXPECT_EQ(Json()["accepted"], true);
}

}  // namespace
}  // namespace thimble
