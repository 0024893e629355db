// Broken and unsupported tokenizer files: one clear error each, never a crash.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "data/tokenizer.h"
#include "tests/data/small_tokenizers.h"

namespace thimble {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string ErrorOf(const std::string& content) {
  const auto tokenizer = Tokenizer::FromJson(content, "broken.json");
  if (tokenizer.ok()) return "(loaded)";
  EXPECT_EQ(tokenizer.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(tokenizer.status().message());
  EXPECT_THAT(message, HasSubstr("broken.json: "));
  return message;
}

// The error after `patch` replaced the value at a JSON pointer.
std::string ErrorWith(const std::string& pointer, const json& value) {
  json file = ByteLevelFile();
  file[json::json_pointer(pointer)] = value;
  return ErrorOf(file.dump());
}

TEST(TokenizerJsonTest, NotATokenizer) {
  EXPECT_THAT(ErrorOf(""), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorOf("{\"a\": \xFF}"), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("expected an object"));
  EXPECT_THAT(ErrorOf("{}"), HasSubstr("there is no model"));
  EXPECT_THAT(ErrorOf(std::string(100000, '[')), HasSubstr("not valid JSON"));
  EXPECT_THAT(ErrorWith("/version", "2.0"), HasSubstr("version: expected \"1.0\", found \"2.0\""));
  EXPECT_EQ(Tokenizer::Load("/nonexistent/tokenizer.json").status().code(), absl::StatusCode::kNotFound);
}

TEST(TokenizerJsonTest, BrokenModel) {
  EXPECT_THAT(ErrorWith("/model/merges/1", "l l x"), HasSubstr("model.merges[1]: expected two pieces with one space"));
  EXPECT_THAT(ErrorWith("/model/merges/1", "ll"), HasSubstr("with 0 spaces"));
  EXPECT_THAT(ErrorWith("/model/merges/1", json::array({"l"})), HasSubstr("model.merges[1]: expected two pieces"));
  EXPECT_THAT(ErrorWith("/model/merges/1", 7), HasSubstr("model.merges[1]"));
  EXPECT_THAT(ErrorWith("/model/merges/1", "zz l"), HasSubstr("the piece \"zz\" is not in model.vocab"));
  EXPECT_THAT(ErrorWith("/model/merges/1", "l o"), HasSubstr("the merged piece \"lo\" is not in model.vocab"));
  EXPECT_THAT(ErrorWith("/model/merges", nullptr), HasSubstr("model.merges: expected an array"));
  EXPECT_THAT(ErrorWith("/model/vocab", json::array()), HasSubstr("model.vocab: expected an object"));
  EXPECT_THAT(ErrorWith("/model/vocab/he", -1), HasSubstr("model.vocab[\"he\"]: expected a token id"));
  EXPECT_THAT(ErrorWith("/model/vocab/he", 4000000000), HasSubstr("expected a token id"));
  EXPECT_THAT(ErrorWith("/model/vocab/he", 257), HasSubstr("the id 257 belongs to"));
  EXPECT_THAT(ErrorWith("/model/dropout", 0.1), HasSubstr("model.dropout"));
  EXPECT_THAT(ErrorWith("/model/fuse_unk", "yes"), HasSubstr("model.fuse_unk: expected true or false"));
  json file = SentencePieceFile();
  file["model"]["unk_token"] = "<none>";
  EXPECT_THAT(ErrorOf(file.dump()), HasSubstr("unk_token \"<none>\" is not in model.vocab"));
}

TEST(TokenizerJsonTest, UnsupportedPartsAreNamed) {
  for (const char* type : {"Unigram", "WordPiece", "WordLevel"}) {
    EXPECT_THAT(ErrorWith("/model/type", type), HasSubstr("the model \"" + std::string(type) + "\" is not supported"));
  }
  EXPECT_THAT(ErrorWith("/normalizer", {{"type", "Precompiled"}}), HasSubstr("normalizer \"Precompiled\""));
  EXPECT_THAT(ErrorWith("/pre_tokenizer", {{"type", "BertPreTokenizer"}}), HasSubstr("\"BertPreTokenizer\""));
  EXPECT_THAT(ErrorWith("/decoder", {{"type", "CTC"}}), HasSubstr("decoder \"CTC\""));
  EXPECT_THAT(ErrorWith("/post_processor", {{"type", "BertProcessing"}}), HasSubstr("\"BertProcessing\""));
}

TEST(TokenizerJsonTest, BrokenParts) {
  const auto split = [](const json& pattern) {
    return ErrorWith("/pre_tokenizer", {{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}});
  };
  EXPECT_THAT(split({{"Regex", "(a"}}), HasSubstr("pre_tokenizer.pattern: bad regular expression \"(a\""));
  EXPECT_THAT(split({{"Regex", "a{1,3}+"}}), HasSubstr("{n,m}+"));
  EXPECT_THAT(split({{"Regex", "[a&&b]"}}), HasSubstr("&& in a class"));
  EXPECT_THAT(split({{"Regex", 5}}), HasSubstr("expected a string"));
  EXPECT_THAT(split("a"), HasSubstr("pre_tokenizer.pattern: expected an object"));
  EXPECT_EQ(split({{"Regex", "\\p{L}+|[[:alpha:]]\\w"}}), "(loaded)");
  EXPECT_THAT(ErrorWith("/pre_tokenizer", json::parse(R"({"type": "Metaspace", "replacement": "ab"})")),
              HasSubstr("a string of one character"));
  EXPECT_THAT(ErrorWith("/added_tokens/0/content", ""), HasSubstr("added_tokens[0]: content is empty"));
  EXPECT_THAT(ErrorWith("/added_tokens/0/id", "x"), HasSubstr("added_tokens[0].id: expected an integer"));
  json file = SentencePieceFile();
  file["post_processor"]["special_tokens"] = json::object();
  EXPECT_THAT(ErrorOf(file.dump()), HasSubstr("the special token \"<s>\" is not in post_processor.special_tokens"));
  file = SentencePieceFile();
  file["post_processor"]["special_tokens"]["<s>"]["ids"] = {99999};
  EXPECT_THAT(ErrorOf(file.dump()), HasSubstr("no token has the id 99999"));
  json nested = {{"type", "NFC"}};
  for (int i = 0; i < 50; ++i) {
    nested = json{{"type", "Sequence"}, {"normalizers", json::array({nested})}};
  }
  EXPECT_THAT(ErrorWith("/normalizer", nested), HasSubstr("nested too deep"));
}

TEST(TokenizerJsonTest, OtherIdOfAnAddedTokenIsReported) {
  json file = ByteLevelFile();
  file["added_tokens"][0]["id"] = 300;
  const auto tokenizer = Tokenizer::FromJson(file.dump(), "file");
  ASSERT_TRUE(tokenizer.ok());
  EXPECT_EQ((*tokenizer)->TokenId("<|end|>"), 261);
  ASSERT_EQ((*tokenizer)->warnings().size(), 1u);
  EXPECT_THAT((*tokenizer)->warnings()[0], HasSubstr("not 300 as written"));
}

}  // namespace
}  // namespace thimble
