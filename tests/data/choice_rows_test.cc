// Multiple-choice questions: their lines, their tokens, what is refused.
#include "data/choice_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "data/model_tokens.h"
#include "tests/data/byte_tokenizer.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class ChoiceRowsTest : public TestFolder {
 protected:
  std::string ErrorOf(const std::string& content) {
    const auto rows = ReadChoiceRows(Write("task.jsonl", content));
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument) << rows.status();
    return std::string(rows.status().message());
  }
};

TEST_F(ChoiceRowsTest, AnswersAreIndicesTextsOrLetters) {
  const auto rows = ReadChoiceRows(Write("task.jsonl", R"({"context": "Q", "choices": ["x", "B", "A"], "answer": 1}
{"context": "", "choices": ["x", "B", "A"], "answer": "A", "id": 7}

{"context": "Q", "choices": ["x", "y"], "answer": "B"}
)"));
  ASSERT_TRUE(rows.ok()) << rows.status();
  ASSERT_EQ(rows->size(), 3);
  EXPECT_EQ((*rows)[0].answer, 1);
  EXPECT_EQ((*rows)[1].answer, 2);  // a choice's text goes before a letter
  EXPECT_EQ((*rows)[2].answer, 1);
  EXPECT_EQ((*rows)[2].line, 4);
}

TEST_F(ChoiceRowsTest, WrongLinesAreRefused) {
  const std::string good = R"({"context": "Q", "choices": ["x", "y"], "answer": 1})";
  EXPECT_THAT(ErrorOf(""), HasSubstr("task.jsonl: no questions"));
  EXPECT_THAT(ErrorOf(good + "\n[1]\n"), HasSubstr("task.jsonl:2: expected one JSON object a line"));
  EXPECT_THAT(ErrorOf("{\"context\": \"Q\"\n"), HasSubstr(":1: expected one JSON object"));
  EXPECT_THAT(ErrorOf(R"({"choices": ["x", "y"], "answer": 1})"), HasSubstr("missing key 'context'"));
  EXPECT_THAT(ErrorOf(R"({"context": 1, "choices": ["x", "y"], "answer": 1})"), HasSubstr("'context': expected"));
  EXPECT_THAT(ErrorOf(R"({"context": "Q", "choices": ["x"], "answer": 0})"), HasSubstr("'choices': expected"));
  EXPECT_THAT(ErrorOf(R"({"context": "Q", "choices": ["x", ""], "answer": 0})"), HasSubstr("found \"\""));
  for (const char* answer : {"2", "-1", "\"C\"", "0.5", "18446744073709551615", "null"}) {
    EXPECT_THAT(ErrorOf(std::string(R"({"context": "Q", "choices": ["x", "y"], "answer": )") + answer + "}"),
                HasSubstr(std::string("'answer': found ") + answer + ", expected an index from 0 to 1"));
  }
}

TEST_F(ChoiceRowsTest, ChoicesAreTokenisedBehindTheirContext) {
  const auto tokenizer = MakeByteTokenizer({});
  ModelTokens tokens;
  const auto encode = [&](const std::string& context, const std::string& choice, int64_t most, bool* cut) {
    return EncodeChoice(*tokenizer, tokens, context, choice, most, cut);
  };
  bool cut = true;
  auto row = encode("ab ", "cd", 100, &cut);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_FALSE(cut);
  EXPECT_EQ(row->tokens, tokenizer->Encode("ab  cd", false));
  EXPECT_THAT(row->is_target, ElementsAre(0, 0, 1, 1, 1, 1));
  row = encode("abcdef", "gh", 4, &cut);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_TRUE(cut);
  EXPECT_EQ(row->tokens, tokenizer->Encode("f gh", false));
  EXPECT_THAT(row->is_target, ElementsAre(0, 1, 1, 1));
  EXPECT_THAT(std::string(encode("", "gh", 9, &cut).status().message()), HasSubstr("no BOS or EOS"));
  tokens.eos_id = 5;
  row = encode(" ", "g", 9, &cut);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ(row->tokens.size(), 4);
  EXPECT_EQ(row->tokens[0], 5);
  EXPECT_THAT(row->is_target, ElementsAre(0, 1, 1, 1));
  tokens.bos_id = 6;
  tokens.add_bos = true;
  row = encode("a", "g", 9, &cut);
  ASSERT_TRUE(row.ok()) << row.status();
  EXPECT_EQ(row->tokens[0], 6);
  EXPECT_THAT(row->is_target, ElementsAre(0, 0, 1, 1));
}

TEST_F(ChoiceRowsTest, CharactersAreNotBytes) {
  EXPECT_EQ(CountCharacters(""), 0);
  EXPECT_EQ(CountCharacters("a\u00e4\u20ac\U0001f600"), 4);
}

}  // namespace
}  // namespace thimble
