// Whole pipelines of small tokenizers: ids, decoding, offsets, streaming.
#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/data/small_tokenizers.h"

namespace thimble {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

std::unique_ptr<Tokenizer> Make(const json& file) {
  auto tokenizer = Tokenizer::FromJson(file.dump(), "test.json");
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  return tokenizer.ok() ? std::move(tokenizer).value() : nullptr;
}

TEST(TokenizerTest, ByteLevelMergesAndDecodes) {
  const auto tokenizer = Make(ByteLevelFile());
  EXPECT_THAT(tokenizer->Encode("hello w", true), ElementsAre(259, 260));
  EXPECT_THAT(tokenizer->Encode("hell<|end|>he", true), ElementsAre(258, 261, 256));
  EXPECT_THAT(tokenizer->Encode("", true), IsEmpty());
  EXPECT_EQ(tokenizer->vocab_size(), 262);
  EXPECT_EQ(tokenizer->TokenId("\u0120w"), 260);
  EXPECT_EQ(tokenizer->TokenId("nothing"), std::nullopt);
  EXPECT_EQ(tokenizer->TokenText(259), "hello");
  EXPECT_EQ(tokenizer->TokenText(1000), "");
  EXPECT_TRUE(tokenizer->IsSpecial(261));
  EXPECT_FALSE(tokenizer->IsSpecial(259));
  EXPECT_EQ(tokenizer->Decode({259, 260, 261, -5, 9999}, true), "hello w");
  EXPECT_EQ(tokenizer->Decode({259, 261}, false), "hello<|end|>");
}

TEST(TokenizerTest, InvalidUtf8BecomesReplacementCharacters) {
  const auto tokenizer = Make(ByteLevelFile());
  // A cut three-byte sequence is one bad part, a lone continuation byte another.
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("a\xE2\x82z\x80", false), false), "a\uFFFDz\uFFFD");
  const auto encoding = tokenizer->EncodeWithOffsets("\xE2\x82h", false);
  EXPECT_THAT(encoding.ids, ElementsAre(0xEF, 0xBF, 0xBD, 'h'));
  EXPECT_THAT(encoding.begin, ElementsAre(0, 0, 0, 2));
  EXPECT_THAT(encoding.end, ElementsAre(2, 2, 2, 3));
}

TEST(TokenizerTest, SentencePieceStyle) {
  const auto tokenizer = Make(SentencePieceFile());
  // Of two spaces the second joins its word, the merge of rank 1, before two marks could join.
  EXPECT_THAT(tokenizer->Encode("ab  ab", true), ElementsAre(1, 262, 258, 262));
  EXPECT_THAT(tokenizer->Encode("\u00e9", false), ElementsAre(258, 0xC3 + 2, 0xA9 + 2));
  EXPECT_EQ(tokenizer->Decode(tokenizer->Encode("ab \u00e9", true), true), "ab \u00e9");
  const auto encoding = tokenizer->EncodeWithOffsets("ab ab", true);
  EXPECT_THAT(encoding.ids, ElementsAre(1, 262, 262));
  EXPECT_THAT(encoding.begin, ElementsAre(0, 0, 2));
  EXPECT_THAT(encoding.end, ElementsAre(0, 2, 5));
}

TEST(TokenizerTest, StreamDecoderNeverCutsACharacter) {
  const auto tokenizer = Make(ByteLevelFile());
  StreamDecoder stream(*tokenizer, false);
  EXPECT_EQ(stream.Push(0xE2), "");
  EXPECT_EQ(stream.Push(0x82), "");
  EXPECT_EQ(stream.Push(0xAC), "\u20AC");
  EXPECT_EQ(stream.Push(0xC3), "");
  EXPECT_EQ(stream.Push('h'), "\uFFFDh");
  EXPECT_EQ(stream.Push(0xC3), "");
  EXPECT_EQ(stream.Finish(), "\uFFFD");
  EXPECT_EQ(stream.Push(259), "hello");
}

}  // namespace
}  // namespace thimble
