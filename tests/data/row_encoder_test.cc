// Rows to ids and masks: one BOS, end of turn as a target, borders by offsets.
#include "data/row_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/data/row_encoder_fixture.h"

namespace thimble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

// The text that is predicted, token by token.
std::string TargetText(const Tokenizer& tokenizer, const EncodedRow& row) {
  std::vector<int32_t> ids;
  for (size_t t = 0; t < row.tokens.size(); ++t) {
    if (row.is_target[t] != 0) ids.push_back(row.tokens[t]);
  }
  return tokenizer.Decode(ids, false);
}

TEST_F(RowEncoderTest, ChatmlMasksByOffsets) {
  ASSERT_NE(tokenizer_, nullptr);
  const auto row = Encoder("chatml").Encode(row_);
  ASSERT_TRUE(row.ok());
  EXPECT_EQ(row->tokens[0], 256);
  EXPECT_EQ(std::count(row->tokens.begin(), row->tokens.end(), 256), 1);
  EXPECT_EQ(TargetText(*tokenizer_, *row), "ja<|im_end|>");
  EXPECT_EQ(row->tokens.back(), '\n');
  EXPECT_EQ(row->is_target.back(), 0);
  const auto all = Encoder("chatml", LossOn::kAll).Encode(row_);
  EXPECT_EQ(std::accumulate(all->is_target.begin(), all->is_target.end(), size_t{0}), all->tokens.size() - 1);
  EXPECT_EQ(all->is_target[0], 0);
}

TEST_F(RowEncoderTest, ExactlyOneBosWhoeverPrintsIt) {
  for (const bool add_bos : {false, true}) {
    const auto mistral = Encoder("mistral", LossOn::kResponses, add_bos).Encode(row_);
    EXPECT_EQ(std::count(mistral->tokens.begin(), mistral->tokens.end(), 256), 1);
    EXPECT_EQ(TargetText(*tokenizer_, *mistral), "ja</s>");
    const auto plain = Encoder("plain", LossOn::kResponses, add_bos).Encode(row_);
    EXPECT_EQ(std::count(plain->tokens.begin(), plain->tokens.end(), 256), add_bos ? 1 : 0);
  }
  // Text that itself starts with BOS.
  Row text;
  text.text = "<s>ab";
  const auto row = Encoder("plain").Encode(text);
  EXPECT_THAT(row->tokens, ElementsAre(256, 'a', 'b', 257));
  EXPECT_THAT(row->is_target, ElementsAre(0, 1, 1, 1));
}

TEST_F(RowEncoderTest, TextInPiecesIsOneDocument) {
  Row text;
  text.text = "ab";
  text.continues = true;
  EXPECT_THAT(Encoder("plain").Encode(text)->tokens, ElementsAre(256, 'a', 'b'));
  text.continues = false;
  const auto rest = Encoder("plain").Encode(text, /*continued=*/true);
  EXPECT_THAT(rest->tokens, ElementsAre('a', 'b', 257));
  EXPECT_THAT(rest->is_target, ElementsAre(1, 1, 1));
}

TEST_F(RowEncoderTest, PromptsForGeneration) {
  const RowEncoder encoder = Encoder("chatml");
  const auto prompt = encoder.EncodePrompt({{"user", "x"}}, RowForm::kMessages);
  ASSERT_TRUE(prompt.ok());
  EXPECT_EQ(tokenizer_->Decode(*prompt, false), "<s><|im_start|>user\nx<|im_end|>\n<|im_start|>assistant\n");
  std::string expected;
  const auto row_prompt = encoder.EncodeRowPrompt(row_, &expected);
  ASSERT_TRUE(row_prompt.ok());
  EXPECT_EQ(expected, "ja");
  // A row is its prompt, its answer, and what ends the turn.
  const auto row = encoder.Encode(row_);
  EXPECT_TRUE(std::equal(row_prompt->begin(), row_prompt->end(), row->tokens.begin()));
  EXPECT_THAT(encoder.StopTokens(), ElementsAre(259, 257));
}

// Contents whose border a tokenizer would not see: merges over it, blanks split by what follows, ends of lines.
const std::vector<std::pair<std::string, std::string>> kBorders = {
    {"Hoi", "Ja!"},    {"2+2=", "4"},        {"abc", "def"},        {"Q: a\nA: ", "b"},
    {"n is  ", "57"},  {"1234", "5678"},     {"tab\t", "x"},        {"line\n", "\nend"},
    {"don", "'t"},     {"over ", " blanks"}, {"\u00e9", "\u0301x"}, {"a", ""},
    {"end </s", ">x"}, {"", "alone"},        {"x", "\n\n\n"},       {" ", " "}};

// Equal to the tokens that the row trains on; also the whole prompt, and from there on only targets of the answer.
void ExpectPromptIsPrefix(const RowEncoder& encoder, RowForm form, const std::string& what) {
  for (const auto& [question, answer] : kBorders) {
    for (const bool longer : {false, true}) {
      if (longer && form != RowForm::kMessages) continue;
      std::vector<Message> before;
      if (longer) before = {{"user", "first "}, {"assistant", " one"}};
      before.push_back({"user", question});
      Row row = ChatRow(before);
      row.form = form;
      row.messages.push_back({"assistant", answer});
      const auto trained = encoder.Encode(row);
      ASSERT_TRUE(trained.ok()) << what << trained.status();
      const auto asked = encoder.EncodePrompt(before, form);
      ASSERT_TRUE(asked.ok()) << what << asked.status();
      std::string expected;
      const auto evaluated = encoder.EncodeRowPrompt(row, &expected);
      ASSERT_TRUE(evaluated.ok()) << what << evaluated.status();
      const std::string where = what + " '" + question + "' '" + answer + "'";
      EXPECT_EQ(*asked, *evaluated) << where;
      ASSERT_LE(asked->size(), trained->tokens.size()) << where;
      EXPECT_TRUE(std::equal(asked->begin(), asked->end(), trained->tokens.begin())) << where;
      // Nothing of the last answer is in the prompt, and nothing before it is left out.
      // A row's very first token is predicted from nothing, so it is no target.
      if (asked->size() < trained->tokens.size() && !longer && !asked->empty()) {
        EXPECT_EQ(
            std::count(trained->is_target.begin(), trained->is_target.begin() + static_cast<int64_t>(asked->size()), 1),
            0)
            << where;
        EXPECT_EQ(trained->is_target[asked->size()], encoder.StopTokens().empty() && answer.empty() ? 0 : 1) << where;
      }
    }
  }
}

TEST_F(RowEncoderTest, APromptIsWhatItsRowBeginsWithInEveryFormat) {
  ModelTokens tokens;
  tokens.bos_token = "<s>";
  tokens.bos_id = 256;
  tokens.eos_token = "</s>";
  tokens.eos_id = 257;
  const auto bytes = MakeByteTokenizer(
      {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"}, "<s>");
  for (const char* name : {"chatml", "llama3", "mistral", "zephyr", "alpaca", "plain"}) {
    const auto format = MakeChatFormat(name, tokens, *bytes);
    ASSERT_TRUE(format.ok()) << format.status();
    for (const RowForm form : {RowForm::kMessages, RowForm::kPromptCompletion, RowForm::kAlpaca}) {
      ExpectPromptIsPrefix(RowEncoder(bytes.get(), tokens, *format, LossOn::kResponses), form,
                           std::string(name) + " " + RowFormName(form));
    }
  }
  // Of a text model, the prompt is a text to go on with; of another, a turn.
  const RowEncoder plain = Encoder("plain");
  EXPECT_THAT(*plain.EncodePrompt({{"user", "ab"}}, RowForm::kText), ElementsAre(256, 'a', 'b'));
  EXPECT_THAT(*plain.EncodePrompt({{"user", "ab"}}, RowForm::kPromptCompletion), ElementsAre(256, 'a', 'b'));
  EXPECT_THAT(*plain.EncodePrompt({{"user", "ab"}}, RowForm::kMessages), ElementsAre(256, 'a', 'b', '\n'));
}

TEST(RowEncoderAssetsTest, APromptIsWhatItsRowBeginsWithInPublishedTokenizers) {
  const std::string assets = AssetsFolder();
  if (!std::filesystem::exists(assets)) GTEST_SKIP() << "no test assets in " << assets;
  const std::pair<const char*, const char*> cases[] = {
      {"tokenizers/qwen2.5", "auto"},   {"tokenizers/qwen3", "auto"},           {"tokenizers/llama-3", "auto"},
      {"tokenizers/smollm3", "chatml"}, {"tokenizers/mistral-v0.1", "mistral"}, {"tokenizers/llama-2", "mistral"},
      {"tokenizers/llama-2", "zephyr"}, {"models/stories260K", "alpaca"},       {"tokenizers/gpt2", "alpaca"},
      {"tokenizers/gpt2", "plain"},     {"tokenizers/qwen2.5", "plain"},        {"tokenizers/llama-3", "plain"},
      {"tokenizers/llama-2", "plain"}};
  for (const auto& [folder, name] : cases) {
    const auto tokenizer = Tokenizer::Load(assets + folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto tokens = LoadModelTokens(assets + folder, **tokenizer);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    const auto format = MakeChatFormat(name, *tokens, **tokenizer);
    ASSERT_TRUE(format.ok()) << folder << format.status();
    const RowEncoder encoder(tokenizer->get(), *tokens, *format, LossOn::kResponses);
    for (const RowForm form : {RowForm::kMessages, RowForm::kPromptCompletion}) {
      ExpectPromptIsPrefix(encoder, form, std::string(folder) + " " + name + " " + RowFormName(form));
    }
  }
}

// Published tokenizers: BOS once, the answer and its end as targets, also where markers need the fallback by id.
TEST(RowEncoderAssetsTest, PublishedTokenizers) {
  const std::string assets = AssetsFolder();
  if (!std::filesystem::exists(assets)) GTEST_SKIP() << "no test assets in " << assets;
  struct Case {
    const char* folder;
    const char* format;
    const char* targets;
    int32_t bos;
  };
  const Case cases[] = {{"tokenizers/qwen2.5", "auto", "Ja!<|im_end|>Néé<|im_end|>", -1},
                        {"tokenizers/qwen3", "auto", "Ja!<|im_end|><think>\n\n</think>\n\nNéé<|im_end|>", -1},
                        {"tokenizers/qwen2", "auto", "Ja!<|im_end|>Néé<|im_end|>", -1},
                        {"tokenizers/llama-3", "auto", "Ja!<|eot_id|>Néé<|eot_id|>", 128000},
                        {"tokenizers/smollm3", "chatml", "Ja!<|im_end|>Néé<|im_end|>", -1},
                        {"tokenizers/mistral-v0.1", "mistral", "Ja!</s>Néé</s>", 1},
                        {"tokenizers/llama-2", "mistral", "Ja!</s>Néé</s>", 1},
                        {"tokenizers/llama-2", "zephyr", "Ja!</s>Néé</s>", 1},
                        {"tokenizers/gpt2", "plain", "Ja!<|endoftext|>Néé<|endoftext|>", -1},
                        {"models/stories260K", "alpaca", "Ja!</s>Néé</s>", 1}};
  const Row row = ChatRow({{"user", "Hoi"}, {"assistant", "Ja!"}, {"user", "Echt?"}, {"assistant", "Néé"}});
  for (const Case& c : cases) {
    const auto tokenizer = Tokenizer::Load(assets + c.folder);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const auto tokens = LoadModelTokens(assets + c.folder, **tokenizer);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    const auto format = MakeChatFormat(c.format, *tokens, **tokenizer);
    ASSERT_TRUE(format.ok()) << c.folder << format.status();
    const RowEncoder encoder(tokenizer->get(), *tokens, *format, LossOn::kResponses);
    const auto encoded = encoder.Encode(row);
    ASSERT_TRUE(encoded.ok()) << encoded.status();
    // SentencePiece-style decoders drop the first space of a text; none is expected in any case.
    std::string targets = TargetText(**tokenizer, *encoded);
    targets.erase(std::remove(targets.begin(), targets.end(), ' '), targets.end());
    EXPECT_EQ(targets, c.targets) << c.folder << " " << c.format;
    EXPECT_TRUE(c.bos < 0 || encoded->tokens[0] == c.bos) << c.folder;
    EXPECT_EQ(std::count(encoded->tokens.begin(), encoded->tokens.end(), c.bos), c.bos >= 0 ? 1 : 0) << c.folder;
  }
}

TEST_F(RowEncoderTest, ModelTokensFromFiles) {
  Write("tokenizer_config.json", R"({"bos_token": {"content": "<s>"}, "eos_token": "</s>", "add_bos_token": false,
        "chat_template": [{"name": "rag", "template": "x"}, {"name": "default", "template": "y"}]})");
  auto tokens = LoadModelTokens(folder_.string(), *tokenizer_);
  ASSERT_TRUE(tokens.ok()) << tokens.status();
  EXPECT_EQ(tokens->bos_id, 256);
  EXPECT_EQ(tokens->eos_id, 257);
  EXPECT_FALSE(tokens->add_bos);
  EXPECT_EQ(tokens->chat_template, "y");
  Write("chat_template.jinja", "z");
  EXPECT_EQ(LoadModelTokens(folder_.string(), *tokenizer_)->chat_template, "z");
  Write("tokenizer_config.json", "{}");
  Write("config.json", R"({"eos_token_id": [257, 3]})");
  tokens = LoadModelTokens(folder_.string(), *tokenizer_);
  EXPECT_EQ(tokens->eos_token, "</s>");
  EXPECT_EQ(tokens->bos_token, "<s>");
  EXPECT_TRUE(tokens->add_bos);
  Write("tokenizer_config.json", "[");
  EXPECT_THAT(LoadModelTokens(folder_.string(), *tokenizer_).status().message(), HasSubstr("tokenizer_config.json"));
  Write("tokenizer_config.json", R"({"eos_token": 5})");
  EXPECT_THAT(LoadModelTokens(folder_.string(), *tokenizer_).status().message(), HasSubstr("'eos_token'"));
}

}  // namespace
}  // namespace thimble
