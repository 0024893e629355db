// data.seq_len: auto and training.micro_batch_size: auto, against plans of every other size.
#include "recipes/auto_sizes.h"

#include <gmock/gmock.h>
#include <stdlib.h>

#include "data/file.h"
#include "recipes/recipe_reader.h"
#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using nlohmann::json;
using testing::HasSubstr;

class AutoSizesTest : public SmallModelTest {
 protected:
  void SetUp() override {
    SmallModelTest::SetUp();
    setenv("XDG_CACHE_HOME", Path("cache").c_str(), 1);
    // A context that is longer than any sequence that fits.
    json config = json::parse(ReadFile(Path("base/config.json")).value());
    config["max_position_embeddings"] = 4000;
    Write("base/config.json", config.dump());
    std::string rows;
    for (int i = 0; i < 200; ++i)
      rows += R"({"prompt": "what is it, and where?", "completion": "a kite."})"
              "\n";
    Write("rows.jsonl", rows);
  }
  void TearDown() override {
    unsetenv("XDG_CACHE_HOME");
    SmallModelTest::TearDown();
  }

  json Plan(const std::vector<std::string>& settings) {
    std::vector<std::string> words = {"plan", Path("recipe.yaml"), "--json"};
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    code_ = Thimble(words);
    return Json();
  }
  // The budget that exactly fits these settings.
  std::string BudgetFor(const std::vector<std::string>& settings) {
    const json plan = Plan(settings);
    EXPECT_EQ(code_, 0) << err_;
    return "memory.device_budget=" + std::to_string(plan["tiers"]["device"]["planned_bytes"].get<int64_t>());
  }

  int code_ = -1;
};

TEST_F(AutoSizesTest, TheSequenceIsTheLongestThatFits) {
  for (const char* policy : {"keep", "recompute", "auto"}) {
    SCOPED_TRACE(policy);
    const std::string activations = std::string("memory.activations=") + policy;
    const std::string budget = BudgetFor(
        {"data.seq_len=640", std::string("memory.activations=") + (policy == std::string("auto") ? "keep" : policy)});
    const json chosen = Plan({activations, budget, "data.seq_len=auto"});
    ASSERT_EQ(code_, 0) << err_;
    const int64_t seq_len = chosen["seq_len"];
    EXPECT_EQ(seq_len % 64, 0);
    EXPECT_GE(seq_len, 640);
    if (policy != std::string("auto")) {
      EXPECT_LE(seq_len, 640 + 64) << "bins hold whole rows";
    }
    Plan({activations, budget, "data.seq_len=" + std::to_string(seq_len)});
    EXPECT_EQ(code_, 0) << err_;
    Plan({activations, budget, "data.seq_len=" + std::to_string(seq_len + 128)});
    EXPECT_EQ(code_, 3);
  }
}

TEST_F(AutoSizesTest, TheWholeContextWhereItFits) {
  EXPECT_EQ(Plan({"memory.device_budget=64GiB", "data.seq_len=auto"})["seq_len"], 4000);
  EXPECT_EQ(code_, 0) << err_;
}

TEST_F(AutoSizesTest, TheMicroBatchHasTheBestRateThatFits) {
  const std::vector<std::string> common = {"training.accumulation=12", "data.seq_len=96"};
  const std::string budget = BudgetFor({"training.accumulation=3", "data.seq_len=96", "training.micro_batch_size=4"});
  const json chosen = Plan({common[0], common[1], budget, "training.micro_batch_size=auto"});
  ASSERT_EQ(code_, 0) << err_;
  const int64_t size = chosen["micro_batch_size"];
  EXPECT_EQ(size * chosen["accumulation"].get<int64_t>(), 12) << "the same rows a step";
  double best = 0;
  for (const int64_t other : {1, 2, 3, 4, 6, 12}) {
    const json plan = Plan({common[1], budget, "training.micro_batch_size=" + std::to_string(other),
                            "training.accumulation=" + std::to_string(12 / other)});
    if (code_ == 0) best = std::max(best, plan["predicted"]["tokens_per_second"].get<double>());
    EXPECT_EQ(code_, other <= 4 ? 0 : 3) << other;
  }
  EXPECT_DOUBLE_EQ(chosen["predicted"]["tokens_per_second"], best);
}

TEST_F(AutoSizesTest, TheRunRecordsWhatWasChosen) {
  const std::string budget = BudgetFor({"data.seq_len=256"});
  const std::vector<std::string> words = {"--set", budget,
                                          "--set", "data.seq_len=auto",
                                          "--set", "training.micro_batch_size=auto",
                                          "--set", "training.accumulation=2"};
  std::vector<std::string> train = {"train", Path("recipe.yaml")};
  train.insert(train.end(), words.begin(), words.end());
  ASSERT_EQ(Thimble(train), 0) << err_;
  EXPECT_THAT(err_, HasSubstr("auto: data.seq_len "));
  EXPECT_THAT(err_, HasSubstr("training.micro_batch_size "));
  const auto resolved = ReadRecipe(Path("run/recipe.yaml"), {});
  ASSERT_TRUE(resolved.ok()) << resolved.status();
  EXPECT_FALSE(HasAutoSizes(*resolved));
  EXPECT_GE(resolved->data().seq_len(), 256);
  EXPECT_EQ(resolved->training().micro_batch_size() * resolved->training().accumulation(), 2);
  std::vector<std::string> data = {"data", Path("recipe.yaml")};
  data.insert(data.end(), words.begin(), words.end());
  EXPECT_EQ(Thimble(data), 0) << err_;
  EXPECT_THAT(err_, HasSubstr("auto: data.seq_len "));
}

TEST_F(AutoSizesTest, RefusesWhatCannotBeChosen) {
  Plan({"data.seq_len=auto"});
  EXPECT_EQ(code_, 2);
  EXPECT_THAT(err_, HasSubstr("auto is the longest that fits: give a budget"));
  Plan({"training.micro_batch_size=auto"});
  EXPECT_EQ(code_, 2);
  Plan({"data.seq_len=aut"});
  EXPECT_EQ(code_, 2);
  EXPECT_THAT(err_, HasSubstr("a whole number from 2 to 16777216, or auto"));
  const json nothing = Plan({"data.seq_len=auto", "memory.device_budget=1000"});
  EXPECT_EQ(code_, 3) << "the smallest, above the budget";
  EXPECT_EQ(nothing["seq_len"], 64);
  EXPECT_TRUE(nothing["least"].is_object());
}

}  // namespace
}  // namespace thimble
