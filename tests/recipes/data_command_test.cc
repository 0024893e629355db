// thimble data: counts, and rows with their targets marked.
#include <gmock/gmock.h>

#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class DataCommandTest : public SmallModelTest {};

TEST_F(DataCommandTest, MarksTargetsInBracketsOffTheTerminal) {
  ASSERT_EQ(Thimble({"data", Path("recipe.yaml"), "--rows=1"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("[[anna has it.</s>]]\n"));
  EXPECT_THAT(out_, testing::Not(HasSubstr("at home")));
  EXPECT_THAT(out_, HasSubstr("Validation rows, held out of the training files\n"));
  EXPECT_EQ(err_, "");
  ASSERT_EQ(Thimble({"data", Path("recipe.yaml"), "--max_tokens=5"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("more tokens)"));
}

TEST_F(DataCommandTest, CountsInJson) {
  ASSERT_EQ(Thimble({"data", Path("recipe.yaml"), "--json", "--set", "data.too_long=cut", "--set", "data.seq_len=16"}),
            0)
      << err_;
  const nlohmann::json json = Json();
  ASSERT_FALSE(json.is_discarded()) << out_;
  EXPECT_EQ(json["train"]["rows"].get<int>() + json["validation"]["rows"].get<int>(), 4);
  EXPECT_EQ(json["rows"].size(), 3u);
  const nlohmann::json& row = json["rows"][0];
  EXPECT_EQ(row["tokens"].size(), row["length"]);
  int64_t targets = 0;
  for (const auto& target : row["is_target"]) targets += target.get<bool>() ? 1 : 0;
  EXPECT_EQ(targets, row["targets"]);
  EXPECT_EQ(targets, 13) << "anna has it. and the end of turn";
  EXPECT_GT(json["train"]["rows_cut"].get<int>() + json["validation"]["rows_cut"].get<int>(), 0);
}

TEST_F(DataCommandTest, RefusesRowsWithoutTargetsAndWrongFlags) {
  EXPECT_EQ(Thimble({"data", Path("recipe.yaml"), "--set", "data.seq_len=2", "--set", "data.too_long=cut"}), 2);
  EXPECT_THAT(err_, HasSubstr("no targets"));
  EXPECT_EQ(Thimble({"data", Path("recipe.yaml"), "--rows=-1"}), 2);
  EXPECT_EQ(Thimble({"data", Path("recipe.yaml"), "--row=1"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean --rows?"));
}

TEST_F(DataCommandTest, NeedsNoWeights) {
  // The header promises bytes that are all NaN: reading one tensor would be refused.
  std::fstream file(Path("base/model.safetensors"), std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-64, std::ios::end);
  file << std::string(64, '\xff');
  file.close();
  EXPECT_EQ(Thimble({"data", Path("recipe.yaml")}), 0) << err_;
  EXPECT_EQ(Thimble({"plan", Path("recipe.yaml")}), 0) << err_;
}

}  // namespace
}  // namespace thimble
