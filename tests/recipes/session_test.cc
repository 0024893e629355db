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

}  // namespace
}  // namespace thimble
