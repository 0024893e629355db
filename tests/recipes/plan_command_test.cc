// thimble plan: the table, its JSON, the budget and what would meet it, plans from a configuration alone.
#include <gmock/gmock.h>
#include <stdlib.h>

#include <cmath>
#include <map>

#include "data/file.h"
#include "recipes/plan_policies.h"
#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class PlanCommandTest : public SmallModelTest {
 protected:
  void SetUp() override {
    SmallModelTest::SetUp();
    setenv("XDG_CACHE_HOME", Path("cache").c_str(), 1);
  }
  void TearDown() override {
    unsetenv("XDG_CACHE_HOME");
    SmallModelTest::TearDown();
  }

  // `thimble plan recipe.yaml --json` with settings; the exit code is left in code_.
  nlohmann::json Plan(const std::vector<std::string>& settings) {
    std::vector<std::string> words = {"plan", Path("recipe.yaml"), "--json"};
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    code_ = Thimble(words);
    return Json();
  }
  // A folder with config.json alone.
  std::string Configuration(const std::string& golden, const std::string& name) const {
    std::filesystem::create_directories(Path(name));
    std::filesystem::copy(THIMBLE_SOURCE_DIR "/tests/golden/bnb_folder/" + golden + "/config.json",
                          Path(name) + "/config.json");
    return Path(name);
  }

  int code_ = -1;
};

// Plans a change as its JSON says and compares.
std::vector<std::string> SettingsOf(const nlohmann::json& change) {
  std::vector<std::string> settings;
  for (const auto& [key, value] : change["recipe"].items()) settings.push_back(key + "=" + value.get<std::string>());
  return settings;
}

TEST_F(PlanCommandTest, AddsUpAndComparesPolicies) {
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--json"}), 0) << err_;
  const nlohmann::json json = Json();
  ASSERT_FALSE(json.is_discarded()) << out_;
  const nlohmann::json& device = json["tiers"]["device"];
  int64_t sum = 0;
  for (const auto& [name, bytes] : json["categories"].items()) sum += bytes.get<int64_t>();
  EXPECT_EQ(sum, device["planned_bytes"]);
  EXPECT_LE(device["lower_bound_bytes"], device["planned_bytes"]);
  EXPECT_EQ(device["budget_bytes"], nullptr);
  EXPECT_EQ(json["tiers"]["disk"]["planned_bytes"], 0);
  EXPECT_GT(json["process_planned_bytes"], device["planned_bytes"]);
  EXPECT_EQ(json["fits"], true);
  // Rank 4 on q, k, v, o (64 by 64, 32, 32, 64) and gate, up, down (128 wide).
  EXPECT_EQ(json["trained_parameters"], 4 * (2 * (64 + 64) + 2 * (64 + 32) + 3 * (64 + 128)));
  EXPECT_EQ(json["activations"]["keep"]["planned_bytes"], device["planned_bytes"]);
  EXPECT_EQ(json["activations"]["keep"]["longest_seq_len"], nullptr);
  EXPECT_FALSE(std::filesystem::exists(Path("run"))) << "plan must write nothing";

  const int64_t recompute = json["activations"]["recompute"]["planned_bytes"];
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--json", "--set", "memory.activations=recompute"}), 0) << err_;
  EXPECT_EQ(Json()["tiers"]["device"]["planned_bytes"], recompute);
}

TEST_F(PlanCommandTest, TheLongestSequenceIsTheLongest) {
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--json"}), 0) << err_;
  const int64_t planned = Json()["tiers"]["device"]["planned_bytes"];
  const std::string budget = "memory.device_budget=" + std::to_string(planned);
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--json", "--set", budget}), 0) << err_;
  const nlohmann::json json = Json();
  EXPECT_EQ(json["fits"], true);
  // The budget is what the plan needs: its own micro-batch fits and one more token does not.
  EXPECT_EQ(json["activations"]["keep"]["longest_seq_len"], json["micro_batch_tokens"]);
  EXPECT_GE(json["activations"]["recompute"]["longest_seq_len"], json["micro_batch_tokens"]);
}

TEST_F(PlanCommandTest, AboveTheBudgetIsExitCode3WithThePlan) {
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--json", "--set", "memory.device_budget=1000"}), 3);
  EXPECT_EQ(Json()["fits"], false);
  EXPECT_EQ(Json()["tiers"]["device"]["budget_bytes"], 1000);
  EXPECT_EQ(Json()["activations"]["keep"]["longest_seq_len"], 0);
  EXPECT_THAT(err_, HasSubstr("memory.device_budget allows 1000"));
  EXPECT_EQ(Thimble({"plan", Path("recipe.yaml"), "--set", "data.train=none.jsonl"}), 2);
  EXPECT_EQ(out_, "");
}

TEST_F(PlanCommandTest, TheTableStaysWithin80Columns) {
  ASSERT_EQ(Thimble({"plan", Path("recipe.yaml"), "--set", "memory.device_budget=90GiB"}), 0) << err_;
  EXPECT_LE(LongestLine(out_), 80u) << out_;
  EXPECT_THAT(out_, HasSubstr("(this recipe)"));
  EXPECT_THAT(out_, HasSubstr("data.seq_len up to 64 fits the budget, the model's whole context"));
  EXPECT_THAT(out_, HasSubstr("The arena is fullest at "));
}

TEST_F(PlanCommandTest, AConfigurationAloneIsPlannedToTheByte) {
  for (const std::string golden : {"source", "nf4", "fp4"}) {
    SCOPED_TRACE(golden);
    const nlohmann::json whole = Plan({"model.path=" + CopyModel(golden, golden)});
    ASSERT_EQ(code_, 0) << err_;
    EXPECT_EQ(whole["without"], "");
    const std::string bare = Configuration(golden, golden + "_bare");
    // With the tokenizer beside it the rows count.
    const nlohmann::json rows = Plan({"model.path=" + bare, "model.tokenizer=" + Path("base")});
    ASSERT_EQ(code_, 0) << err_;
    EXPECT_EQ(rows["without"], "Planned without weights");
    for (const char* key : {"tiers", "categories", "micro_batch_tokens", "peak", "trained_parameters"}) {
      EXPECT_EQ(rows[key], whole[key]) << key;
    }
    // The file itself, no tokenizer, no rows: micro-batches are full.
    const nlohmann::json shape = Plan({"model.path=" + bare + "/config.json", "data.train=null"});
    ASSERT_EQ(code_, 0) << err_;
    EXPECT_THAT(shape["without"], HasSubstr("weights, tokenizer and data"));
    EXPECT_EQ(shape["micro_batch_tokens"], 32);
    EXPECT_EQ(shape["categories"]["weights"], whole["categories"]["weights"]);
  }
}

TEST_F(PlanCommandTest, OnlyPlansAreMadeWithoutWeights) {
  const std::string bare = Configuration("source", "bare");
  EXPECT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "model.path=" + bare}), 2);
  EXPECT_THAT(err_, HasSubstr("has neither model.safetensors"));
  EXPECT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "data.train=null"}), 2);
  EXPECT_THAT(err_, HasSubstr("data.train: missing"));
  Plan({"model.path=" + Path("nowhere")});
  EXPECT_EQ(code_, 2);
  Plan({"model.path=" + Path("rows.jsonl")});
  EXPECT_EQ(code_, 2) << "a file that is no configuration";
  Plan({"model.path=" + bare, "model.tokenizer=" + Path("nowhere")});
  EXPECT_EQ(code_, 2) << "a tokenizer that is named must be there";
}

TEST_F(PlanCommandTest, ChangesFitWhenTheyAreMade) {
  // A deeper model, so that boundaries and frozen layers are worth something.
  nlohmann::json config = nlohmann::json::parse(*ReadFile(Configuration("source", "deep") + "/config.json"));
  config["num_hidden_layers"] = 8;
  config["intermediate_size"] = 512;
  config["max_position_embeddings"] = 4096;
  Write("deep/config.json", config.dump());
  const std::vector<std::string> bare = {"model.path=" + Path("deep"), "data.train=null"};
  const std::vector<std::vector<std::string>> shapes = {
      {"training.micro_batch_size=4", "adapter.rank=16", "memory.host_budget=1GiB", "memory.disk_budget=1GiB"},
      // Long micro-batches: the MLP is what is large.
      {"data.seq_len=2048", "memory.activations=recompute"},
      // Everything trains: moments are what is large.
      {"adapter.type=none", "trainable.weights=all", "quantization.format=none", "data.seq_len=16"},
      {"adapter.dropout=0.1", "data.seq_len=1024", "memory.activations=recompute", "memory.boundary_span=4"},
      // No room in the other tiers.
      {"data.seq_len=64", "memory.host_budget=1KB", "memory.disk_budget=1KB"}};
  std::map<std::string, int> seen;
  for (size_t shape = 0; shape < shapes.size(); ++shape) {
    std::vector<std::string> whole = bare;
    whole.insert(whole.end(), shapes[shape].begin(), shapes[shape].end());
    const int64_t planned = Plan(whole)["tiers"]["device"]["planned_bytes"];
    ASSERT_EQ(code_, 0) << err_;
    for (double share : {0.98, 0.85, 0.7, 0.5, 0.35, 0.2}) {
      SCOPED_TRACE(testing::Message() << "shape " << shape << ", share " << share);
      const int64_t budget = static_cast<int64_t>(share * static_cast<double>(planned));
      std::vector<std::string> settings = whole;
      settings.push_back("memory.device_budget=" + std::to_string(budget));
      const nlohmann::json json = Plan(settings);
      EXPECT_EQ(code_, 3);
      EXPECT_LE(json["changes"].size(), 3u);
      for (const nlohmann::json& change : json["changes"]) {
        SCOPED_TRACE(change.dump());
        EXPECT_LE(change["planned_bytes"], budget);
        std::vector<std::string> changed = settings;
        for (const std::string& setting : SettingsOf(change)) changed.push_back(setting);
        const nlohmann::json again = Plan(changed);
        EXPECT_EQ(code_, 0) << err_;
        EXPECT_EQ(again["tiers"]["device"]["planned_bytes"], change["planned_bytes"]);
        EXPECT_NEAR(again["predicted"]["step_seconds"], change["step_seconds"],
                    1e-9 * change["step_seconds"].get<double>());
        for (const auto& [key, value] : change["recipe"].items()) ++seen[key];
        const bool drops_out = shape == 3;
        if (change["recipe"].size() == 1 && change["recipe"].contains("memory.mlp_tile")) {
          EXPECT_EQ(change["effect"], drops_out ? "same_batch" : "same_bits");
        }
        if (change["recipe"].contains("optimizer.name")) {
          EXPECT_NE(change["effect"], "same_bits");
        }
      }
    }
  }
  for (const char* key : {"memory.activations", "memory.boundary_span", "memory.mlp_tile", "memory.weights",
                          "optimizer.name", "training.micro_batch_size", "data.seq_len"}) {
    EXPECT_GE(seen[key], 1) << key;
  }
  // What an adapter can learn is not for sale.
  EXPECT_EQ(seen.count("adapter.rank"), 0u);
}

TEST_F(PlanCommandTest, WhereNothingFitsTheLeastIsNamed) {
  const nlohmann::json json = Plan({"memory.device_budget=1000"});
  EXPECT_EQ(code_, 3);
  EXPECT_TRUE(json["changes"].empty());
  const nlohmann::json& least = json["least"];
  ASSERT_TRUE(least.is_object()) << json.dump();
  std::vector<std::string> settings = SettingsOf(least);
  settings.push_back("memory.device_budget=" + std::to_string(least["planned_bytes"].get<int64_t>()));
  EXPECT_EQ(Plan(settings)["fits"], true) << err_;
  EXPECT_EQ(code_, 0);
  EXPECT_EQ(Thimble({"plan", Path("recipe.yaml"), "--set", "memory.device_budget=1000"}), 3);
  EXPECT_THAT(out_, HasSubstr("No change that was tried fits"));
  EXPECT_LE(LongestLine(out_), 80u) << out_;
}

TEST_F(PlanCommandTest, JsonHasTheKeysOfTheHelpPage) {
  const nlohmann::json json = Plan({"memory.device_budget=1GiB"});
  ASSERT_EQ(code_, 0) << err_;
  for (const char* key :
       {"tiers", "process_planned_bytes", "categories", "arena_bytes", "micro_batch_tokens", "peak", "fits", "without",
        "parameters", "trained_parameters", "predicted", "activations", "changes", "least"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  for (const char* key : {"step_seconds", "step_tokens", "tokens_per_second", "bound_by", "arithmetic_share", "flops",
                          "bytes", "ops", "rates"}) {
    EXPECT_TRUE(json["predicted"].contains(key)) << key;
  }
  EXPECT_GT(json["predicted"]["step_seconds"], 0);
  EXPECT_GT(json["activations"]["recompute"]["step_seconds"], json["activations"]["keep"]["step_seconds"]);
  EXPECT_LT(json["peak"]["step_index"], json["peak"]["steps"]);
  EXPECT_EQ(json["changes"].size(), 0u);
  EXPECT_EQ(json["least"], nullptr);
  EXPECT_TRUE(std::filesystem::exists(Path("cache/thimble/machine_rates.json")));
}

TEST(LargestThatFitsTest, IsTheLargestForStraightAndBentLines) {
  const std::vector<std::function<int64_t(int64_t)>> lines = {
      [](int64_t n) { return 7 * n + 100; },
      [](int64_t n) { return (n * 13 + 63) / 64 * 64; },
      [](int64_t n) { return n * n; },
      [](int64_t n) { return std::max<int64_t>(50000, n); },
      [](int64_t n) { return static_cast<int64_t>(1000 * std::sqrt(static_cast<double>(n))); },
  };
  for (const auto& line : lines) {
    for (int64_t budget : {0, 99, 107, 5000, 50000, 123457, 1000000}) {
      int64_t expected = 0;
      for (int64_t n = 2; n <= 3000 && line(n) <= budget; ++n) expected = n;
      int calls = 0;
      const int64_t found = LargestThatFits(2, 3000, budget, [&](int64_t n) {
        ++calls;
        return line(n);
      });
      EXPECT_EQ(found, expected) << "budget " << budget;
      EXPECT_LE(calls, 2 + 3 * 12);
    }
  }
}

TEST(LargestNearTest, FitsAndIsNearTheBudgetWithFewPlans) {
  const std::vector<std::function<int64_t(int64_t)>> lines = {
      [](int64_t n) { return 7000 * n + 100000; },
      [](int64_t n) { return 40'000'000'000 + 14'000 * ((n + 1023) / 1024 * 1024); },
      [](int64_t n) { return std::max<int64_t>(50'000'000'000, 90'000 * n); },
  };
  for (const auto& line : lines) {
    for (const int64_t budget : {int64_t{1000}, int64_t{51'000'000'000}, int64_t{200'000'000'000}}) {
      for (const int64_t start : {1, 4096, 262144, 100'000'000}) {
        int calls = 0;
        const int64_t found = LargestNear(start, 1 << 24, budget, [&](int64_t n) {
          ++calls;
          return line(n);
        });
        if (line(2) > budget) {
          EXPECT_EQ(found, 0);
          continue;
        }
        EXPECT_LE(line(found), budget);
        EXPECT_TRUE(found == 1 << 24 || line(found) >= 0.99 * static_cast<double>(budget) ||
                    line(found + found / 90 + 1) > budget)
            << found << " from " << start << " for " << budget;
        EXPECT_LE(calls, &line == &lines.back() ? 28 : 8);
      }
    }
  }
}

}  // namespace
}  // namespace thimble
