// thimble plan: the table, its JSON, the budget.
#include <gmock/gmock.h>

#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class PlanCommandTest : public SmallModelTest {};

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

}  // namespace
}  // namespace thimble
