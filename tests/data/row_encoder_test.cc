// Rows to ids and masks: one BOS, end of turn as a target, borders by offsets; the cache; the report.
#include "data/row_encoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <numeric>
#include <thread>

#include "data/data_report.h"
#include "data/file.h"
#include "data/token_cache.h"
#include "ops/parallel.h"
#include "tests/data/byte_tokenizer.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

Row ChatRow(const std::vector<Message>& messages) {
  Row row;
  row.form = RowForm::kMessages;
  row.messages = messages;
  return row;
}

// The text that is predicted, token by token.
std::string TargetText(const Tokenizer& tokenizer, const EncodedRow& row) {
  std::vector<int32_t> ids;
  for (size_t t = 0; t < row.tokens.size(); ++t) {
    if (row.is_target[t] != 0) ids.push_back(row.tokens[t]);
  }
  return tokenizer.Decode(ids, false);
}

class RowEncoderTest : public TestFolder {
 protected:
  RowEncoder Encoder(const std::string& format_name, LossOn loss_on = LossOn::kResponses, bool add_bos = true) {
    ModelTokens tokens;
    tokens.bos_token = "<s>";
    tokens.bos_id = 256;
    tokens.eos_token = "</s>";
    tokens.eos_id = 257;
    tokens.add_bos = add_bos;
    auto format = MakeChatFormat(format_name, tokens, *tokenizer_);
    EXPECT_TRUE(format.ok()) << format.status();
    return RowEncoder(tokenizer_.get(), tokens, *format, loss_on);
  }
  std::unique_ptr<Tokenizer> tokenizer_ = MakeByteTokenizer({"<s>", "</s>", "<|im_start|>", "<|im_end|>"}, "<s>");
  const Row row_ = ChatRow({{"user", "hé"}, {"assistant", "ja"}});
};

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

class TokenCacheTest : public RowEncoderTest {
 protected:
  void SetUp() override {
    RowEncoderTest::SetUp();
    tokenizer_file_ = Write("tokenizer.json", ByteTokenizerJson({"<s>", "</s>"}, "<s>"));
    std::string rows;
    for (int i = 0; i < 300; ++i) {
      rows += R"({"prompt": "p)" + std::to_string(i) + R"(", "completion": "c)" + std::string(i % 50, 'x') + "\"}\n";
    }
    options_.files = {Write("data.jsonl", rows)};
    cache_ = Path("cache");
  }
  static std::vector<int32_t> AllTokens(const TokenRows& rows) {
    std::vector<int32_t> all;
    for (int64_t row = 0; row < rows.size(); ++row) {
      std::vector<int32_t> tokens;
      std::vector<uint8_t> is_target;
      EXPECT_TRUE(rows.Read(row, 0, rows.length(row), &tokens, &is_target).ok());
      all.insert(all.end(), tokens.begin(), tokens.end());
      all.insert(all.end(), is_target.begin(), is_target.end());
    }
    return all;
  }
  absl::StatusOr<TokenisedDataset> Tokenise(const std::string& format = "plain") {
    return TokeniseDataset(options_, Encoder(format), tokenizer_file_, cache_);
  }
  std::string tokenizer_file_;
  DatasetOptions options_;
  std::string cache_;
};

TEST_F(TokenCacheTest, SecondTimeComesFromTheCacheAndIsEqual) {
  const auto memory = TokeniseDataset(options_, Encoder("plain"), tokenizer_file_, "");
  ASSERT_TRUE(memory.ok()) << memory.status();
  const auto first = Tokenise();
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_FALSE(first->from_cache);
  const auto second = Tokenise();
  ASSERT_TRUE(second.ok());
  EXPECT_TRUE(second->from_cache);
  EXPECT_EQ(second->warning, "");
  EXPECT_EQ(second->description, memory->description);
  EXPECT_EQ(AllTokens(*first->rows), AllTokens(*memory->rows));
  EXPECT_EQ(AllTokens(*second->rows), AllTokens(*memory->rows));
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(cache_), std::filesystem::directory_iterator()), 1);
}

TEST_F(TokenCacheTest, AnythingThatShapesTheTokensMakesAnotherFile) {
  const std::string fingerprint = Tokenise()->fingerprint;
  EXPECT_NE(Tokenise("alpaca")->fingerprint, fingerprint);
  EXPECT_NE(TokeniseDataset(options_, Encoder("plain", LossOn::kAll), tokenizer_file_, cache_)->fingerprint,
            fingerprint);
  EXPECT_NE(
      TokeniseDataset(options_, Encoder("plain", LossOn::kResponses, false), tokenizer_file_, cache_)->fingerprint,
      fingerprint);
  options_.max_rows = 7;
  EXPECT_NE(Tokenise()->fingerprint, fingerprint);
  options_.max_rows = 0;
  std::filesystem::rename(options_.files[0], Path("renamed.jsonl"));
  options_.files[0] = Path("renamed.jsonl");
  EXPECT_EQ(Tokenise()->fingerprint, fingerprint);
  Write("renamed.jsonl", *ReadFile(options_.files[0]) + "\n");
  EXPECT_NE(Tokenise()->fingerprint, fingerprint);
  Write("tokenizer.json", *ReadFile(tokenizer_file_) + " ");
  const auto other = Tokenise();
  EXPECT_FALSE(other->from_cache);
}

TEST_F(TokenCacheTest, DamagedCacheIsRebuiltWithAWarning) {
  const auto first = Tokenise();
  std::string bytes = *ReadFile(first->cache_file);
  const std::string good = bytes;
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  { std::ofstream(first->cache_file, std::ios::binary) << bytes; }
  const auto second = Tokenise();
  ASSERT_TRUE(second.ok());
  EXPECT_FALSE(second->from_cache);
  EXPECT_THAT(second->warning, HasSubstr("damaged"));
  EXPECT_EQ(*ReadFile(second->cache_file), good);
  EXPECT_TRUE(Tokenise()->from_cache);
}

TEST_F(TokenCacheTest, FolderThatCannotBeWrittenMeansMemory) {
  cache_ = Write("file", "x") + "/cache";
  const auto dataset = Tokenise();
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  EXPECT_THAT(dataset->warning, HasSubstr("kept in memory"));
  EXPECT_EQ(dataset->rows->size(), 300);
}

TEST_F(TokenCacheTest, ErrorsOfTheDataNameTheLine) {
  Write("data.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"prompt\": \"a\"}\n");
  EXPECT_THAT(Tokenise().status().message(), HasSubstr("data.jsonl:2: missing column 'completion'"));
  EXPECT_TRUE(std::filesystem::is_empty(cache_));
  Write("data.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n\n"
        "{\"messages\": [{\"role\": \"tool\", \"content\": \"a\"}]}\n");
  EXPECT_THAT(Tokenise("alpaca").status().message(), HasSubstr("data.jsonl:3: chat format alpaca has no place"));
}

TEST_F(TokenCacheTest, TwoProcessesWriteTheSameFile) {
  std::vector<pid_t> children;
  for (int i = 0; i < 3; ++i) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      SetNumThreads(1);  // OpenMP's threads do not survive a fork
      const auto dataset = TokeniseDataset(options_, Encoder("plain"), tokenizer_file_, cache_);
      std::_Exit(dataset.ok() && dataset->rows->size() == 300 && dataset->warning.empty() ? 0 : 1);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    ::waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
  }
  EXPECT_TRUE(Tokenise()->from_cache);
}

TEST_F(TokenCacheTest, ReportCountsAndMarks) {
  const auto dataset = Tokenise();
  const RowEncoder encoder = Encoder("plain");
  PackingOptions packing;
  packing.seq_len = 40;
  const auto stream = BatchStream::Make(dataset->rows, packing);
  ASSERT_TRUE(stream.ok());
  const DataReport report = MakeDataReport(*dataset, *stream, encoder);
  EXPECT_EQ(report.stats.rows, 300);
  EXPECT_GT(report.stats.rows_cut, 0);
  EXPECT_GT(report.packing_efficiency, 0.9);
  EXPECT_LE(report.packing_efficiency, 1.0);
  const auto json = nlohmann::json::parse(DataReportJson(report));
  EXPECT_EQ(json["rows"], 300);
  EXPECT_EQ(json["targets"], report.stats.targets);
  EXPECT_THAT(FormatDataReport(report), HasSubstr("rows without targets"));
  const auto rendered = RenderRows(*dataset->rows, *tokenizer_, 2, 100, MarkStyle::kBrackets);
  EXPECT_THAT(*rendered, HasSubstr("<s>p1[[cx</s>]]"));
  EXPECT_THAT(*RenderRows(*dataset->rows, *tokenizer_, 2, 100, MarkStyle::kAnsi),
              HasSubstr("<s>p1\x1b[32mcx</s>\x1b[0m"));
  EXPECT_THAT(*RenderRows(*dataset->rows, *tokenizer_, 2, 3, MarkStyle::kAnsi), HasSubstr("more tokens)"));
}

TEST_F(TokenCacheTest, LongTextGoesThroughTheFile) {
  std::string text;
  for (int i = 0; text.size() < 3000000; ++i) text += "Line " + std::to_string(i) + "\n";
  options_.files = {Write("long.txt", text)};
  const auto dataset = Tokenise();
  ASSERT_TRUE(dataset.ok()) << dataset.status();
  ASSERT_EQ(dataset->rows->size(), 1);
  EXPECT_EQ(dataset->rows->length(0), static_cast<int64_t>(text.size()) + 2);
  PackingOptions packing;
  packing.mode = PackingMode::kWindows;
  packing.seq_len = 1000;
  auto stream = BatchStream::Make(dataset->rows, packing);
  ASSERT_TRUE(stream.ok());
  EXPECT_EQ(stream->stats().targets, static_cast<int64_t>(text.size()) + 1);
  Batch batch;
  ASSERT_TRUE(stream->Next(&batch).ok());
  EXPECT_EQ(batch.num_targets, 1000);
}

}  // namespace
}  // namespace thimble
