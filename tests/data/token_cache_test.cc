// Tokenised rows that are kept between runs, and the report on them.
#include "data/token_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "data/data_report.h"
#include "data/file.h"
#include "ops/parallel.h"
#include "tests/data/row_encoder_fixture.h"

namespace thimble {
namespace {

using ::testing::HasSubstr;

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
