// What the commands that take a model make of a run: prompts as in the rows that it learned from.
#include "recipes/session.h"

#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

class SessionTest : public SmallModelTest {
 protected:
  int64_t PromptTokens(const std::string& prompt) {
    EXPECT_EQ(Thimble({"generate", Path("run"), "--prompt=" + prompt, "--max_new_tokens=1", "--json"}), 0) << err_;
    return Json().value("prompt_tokens", int64_t{-1});
  }
};

// A prompt of prompt and completion rows is its letters; a turn of messages ends with a line end.
TEST_F(SessionTest, APromptIsWrittenAsInTheRowsOfTheRun) {
  ASSERT_EQ(Thimble({"train", Path("recipe.yaml")}), 0) << err_;
  EXPECT_EQ(PromptTokens("where?"), 6);
  std::filesystem::remove_all(Path("run"));
  Write("rows.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"where?\"}, {\"role\": \"assistant\", \"content\": \"at "
        "home.\"}]}\n{\"messages\": [{\"role\": \"user\", \"content\": \"who?\"}, {\"role\": \"assistant\", "
        "\"content\": \"anna.\"}]}\n");
  ASSERT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "data.validation_share=0"}), 0) << err_;
  EXPECT_EQ(PromptTokens("where?"), 7);
}

// What only training needs is not declared, so using the run takes what using its export takes, to the byte.
TEST_F(SessionTest, UsingAFullyTrainedRunTakesNoGradientsAndNoMoments) {
  ASSERT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "adapter.type=none", "--set", "quantization.format=none",
                     "--set", "optimizer.learning_rate=1e-4"}),
            0)
      << err_;
  const auto model = OpenModel(Path("run"), /*best=*/false);
  ASSERT_TRUE(model.ok()) << model.status();
  const Store& store = (*model)->store;
  EXPECT_EQ(store.BytesOf(Category::kGradients), 0);
  EXPECT_EQ(store.BytesOf(Category::kMoments), 0);
  EXPECT_GT(store.BytesOf(Category::kParameters), 0);
  EXPECT_EQ(store.ResidentBytes(), store.BytesOf(Category::kParameters) + store.PaddingBytes());

  ASSERT_EQ(Thimble({"export", Path("run"), "--out=" + Path("model"), "--dtype=f32", "--json"}), 0) << err_;
  const nlohmann::json exported = Json()["memory"];
  EXPECT_GE(exported["planned_bytes"], exported["measured_bytes"]);
  EXPECT_GE(exported["planned_bytes"].get<int64_t>(), store.ResidentBytes());
  const std::vector<std::vector<std::string>> commands = {
      {"eval", "", "--data=" + Path("rows.jsonl"), "--chat_format=plain", "--json"},
      {"eval", "", "--data=" + Path("rows.jsonl"), "--chat_format=plain", "--json", "--exact_match"},
      {"generate", "", "--prompt=who", "--raw", "--max_new_tokens=3", "--json"}};
  for (std::vector<std::string> words : commands) {
    words[1] = Path("run");
    ASSERT_EQ(Thimble(words), 0) << err_;
    const nlohmann::json run = Json()["memory"];
    // A batch or a prompt may be shorter than the longest, and never longer.
    EXPECT_GE(run["planned_bytes"], run["measured_bytes"]) << words[0];
    EXPECT_GE(run["measured_bytes"], store.ResidentBytes()) << words[0];
    words[1] = Path("model");
    ASSERT_EQ(Thimble(words), 0) << err_;
    EXPECT_EQ(Json()["memory"], run) << words[0];
  }
}

}  // namespace
}  // namespace thimble
