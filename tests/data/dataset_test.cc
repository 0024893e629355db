// Rows from JSON arrays, JSON lines and plain text; errors name file and line.
#include "data/dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zstd.h>

#include "data/file.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Rows {
  absl::Status status;
  std::vector<Row> rows;
  std::string description;
};

Rows ReadAll(const DatasetOptions& options) {
  Rows result;
  auto reader = DatasetReader::Open(options);
  result.status = reader.status();
  if (!reader.ok()) return result;
  result.description = (*reader)->description();
  while (true) {
    Row row;
    const auto more = (*reader)->Next(&row);
    result.status = more.status();
    if (!more.ok() || !*more) return result;
    result.rows.push_back(row);
  }
}

DatasetOptions Files(std::vector<std::string> files) {
  DatasetOptions options;
  options.files = std::move(files);
  return options;
}

Rows ReadFileOnly(const std::string& path) { return ReadAll(Files({path})); }

std::string Compress(const std::string& text) {
  std::string out(ZSTD_compressBound(text.size()), '\0');
  out.resize(ZSTD_compress(out.data(), out.size(), text.data(), text.size(), 3));
  return out;
}

class DatasetTest : public TestFolder {
 protected:
  std::string ErrorOf(const std::string& name, const std::string& content) {
    const Rows rows = ReadFileOnly(Write(name, content));
    EXPECT_EQ(rows.status.code(), absl::StatusCode::kInvalidArgument) << rows.status;
    return std::string(rows.status.message());
  }
};

TEST_F(DatasetTest, AlpacaArrayWithRowsOverSeveralLines) {
  const Rows rows = ReadFileOnly(Write("a.json", R"([
  {"instruction": "Add ] , [ \"x\\", "input": "1, 2",
   "output": "3"},
  {"instruction": "Say hi", "input": null, "output": "hi", "id": 7}
])"));
  ASSERT_TRUE(rows.status.ok()) << rows.status;
  ASSERT_EQ(rows.rows.size(), 2u);
  EXPECT_EQ(rows.rows[0].form, RowForm::kAlpaca);
  EXPECT_EQ(rows.rows[0].messages[0].content, "Add ] , [ \"x\\");
  EXPECT_EQ(rows.rows[0].input, "1, 2");
  EXPECT_EQ(rows.rows[0].messages[1].role, "assistant");
  EXPECT_EQ(rows.rows[0].messages[1].content, "3");
  EXPECT_EQ(rows.rows[0].line, 2);
  EXPECT_EQ(rows.rows[1].line, 4);
  EXPECT_EQ(rows.rows[1].input, "");
  EXPECT_THAT(rows.description, HasSubstr("alpaca, recognised"));
}

TEST_F(DatasetTest, JsonLinesOfEveryFormAndZstd) {
  const std::string openai = R"({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "U"},)"
                             R"( {"role": "assistant", "content": [{"type": "text", "text": "A"}]}], "id": 1})";
  Rows rows = ReadFileOnly(Write("m.jsonl", openai + "\n\n" + openai + "\r\n"));
  ASSERT_TRUE(rows.status.ok()) << rows.status;
  ASSERT_EQ(rows.rows.size(), 2u);
  EXPECT_EQ(rows.rows[1].line, 3);
  EXPECT_EQ(rows.rows[1].messages[2].content, "A");
  EXPECT_THAT(rows.description, HasSubstr("not used: id"));

  rows = ReadFileOnly(Write("s.jsonl.zst", Compress(R"({"conversations": [{"from": "human", "value": "U"},)"
                                                    R"({"from": "gpt", "value": "A"}], "system": "S"})")));
  ASSERT_TRUE(rows.status.ok()) << rows.status;
  ASSERT_EQ(rows.rows.size(), 1u);
  EXPECT_EQ(rows.rows[0].messages[0].content, "S");
  EXPECT_EQ(rows.rows[0].messages[2].role, "assistant");

  rows = ReadFileOnly(Write("q.jsonl", R"({"question": "Q", "answer": "A"})"));
  ASSERT_EQ(rows.rows.size(), 1u);
  EXPECT_EQ(rows.rows[0].form, RowForm::kPromptCompletion);
  rows = ReadFileOnly(Write("t.jsonl", R"({"text": "T\u00e9"})"));
  ASSERT_EQ(rows.rows.size(), 1u);
  EXPECT_EQ(rows.rows[0].text, "Té");

  DatasetOptions options = Files({Write("c.jsonl", R"({"ask": "Q", "reply": "A", "text": "T"})")});
  options.form = RowForm::kPromptCompletion;
  options.columns.prompt = "ask";
  options.columns.completion = "reply";
  rows = ReadAll(options);
  ASSERT_EQ(rows.rows.size(), 1u) << rows.status;
  EXPECT_EQ(rows.rows[0].messages[1].content, "A");
  EXPECT_THAT(rows.description, HasSubstr("as given"));
}

TEST_F(DatasetTest, SeveralFilesFirstRowAndMaxRows) {
  DatasetOptions options = Files({Write("a.jsonl", "{\"text\": \"1\"}\n{\"text\": \"2\"}\n"),
                                  Write("b.json", "[{\"text\": \"3\"}, {\"text\": \"4\"}]")});
  EXPECT_EQ(ReadAll(options).rows.size(), 4u);
  options.first_row = 1;
  options.max_rows = 2;
  const Rows rows = ReadAll(options);
  ASSERT_EQ(rows.rows.size(), 2u);
  EXPECT_EQ(rows.rows[0].text, "2");
  EXPECT_EQ(rows.rows[1].text, "3");
  EXPECT_EQ(rows.rows[1].file, 1);
  options.first_row = 5;
  EXPECT_THAT(ReadAll(options).status.message(), HasSubstr("only 4 rows"));
}

TEST_F(DatasetTest, FilesOfOneFormMayNameTheirColumnsDifferently) {
  const Rows rows = ReadAll(Files({Write("a.jsonl", R"({"instruction": "1", "output": "2"})"),
                                   Write("b.jsonl", R"({"instruction": "3", "response": "4"})")}));
  ASSERT_EQ(rows.rows.size(), 2u) << rows.status;
  EXPECT_EQ(rows.rows[1].messages[1].content, "4");
}

TEST_F(DatasetTest, PlainTextWholeAndSeparated) {
  const std::string path = Write("t.txt", "One\ntwo\n<|e|>\nThree<|e|><|e|> Four");
  Rows rows = ReadFileOnly(path);
  ASSERT_EQ(rows.rows.size(), 1u);
  EXPECT_EQ(rows.rows[0].text, *ReadFile(path));
  DatasetOptions options = Files({path});
  options.text_separator = "<|e|>";
  rows = ReadAll(options);
  ASSERT_EQ(rows.rows.size(), 3u);
  EXPECT_EQ(rows.rows[0].text, "One\ntwo");
  EXPECT_EQ(rows.rows[1].text, "Three");
  EXPECT_EQ(rows.rows[1].line, 3);
  EXPECT_EQ(rows.rows[2].text, " Four");
  EXPECT_EQ(rows.rows[2].line, 4);
  options.text_separator = "\ntwo\n";
  rows = ReadAll(options);
  ASSERT_EQ(rows.rows.size(), 2u);
  EXPECT_EQ(rows.rows[0].text, "One");
}

TEST_F(DatasetTest, LongTextComesInPieces) {
  std::string text;
  for (int i = 0; text.size() < 3500000; ++i) text += "Line " + std::to_string(i) + (i % 7 == 0 ? "\n\n" : "\n");
  Rows rows = ReadFileOnly(Write("t.txt", "\xEF\xBB\xBF" + text));
  ASSERT_TRUE(rows.status.ok()) << rows.status;
  EXPECT_EQ(rows.rows.size(), 4u);
  std::string joined;
  for (size_t i = 0; i < rows.rows.size(); ++i) {
    joined += rows.rows[i].text;
    EXPECT_EQ(rows.rows[i].continues, i + 1 < rows.rows.size());
    EXPECT_EQ(rows.rows[i].text.substr(0, 4), "Line");
  }
  EXPECT_EQ(joined, text);
  DatasetOptions options = Files({Path("t.txt")});
  options.text_separator = "<|e|>";
  options.max_rows = 1;
  rows = ReadAll(options);
  EXPECT_EQ(rows.rows.size(), 4u) << "pieces of one document count as one row";
}

TEST_F(DatasetTest, MalformedInputNamesFileAndLine) {
  const std::string good = "{\"text\": \"a\"}\n";
  EXPECT_THAT(ErrorOf("a.jsonl", good + good + "{\"text\": }\n"), AllOf(HasSubstr("a.jsonl:3: malformed JSON")));
  EXPECT_THAT(ErrorOf("b.jsonl", good + "{\"text\": \"\xC3(\"}\n"), HasSubstr("b.jsonl:2: invalid UTF-8 (byte 0xC3)"));
  EXPECT_THAT(ErrorOf("c.jsonl", good + "[1]\n"), HasSubstr("c.jsonl:2: expected a JSON object, found array"));
  EXPECT_THAT(ErrorOf("d.jsonl", good + "{\"body\": \"a\"}\n"), HasSubstr("d.jsonl:2: missing column 'text'"));
  EXPECT_THAT(ErrorOf("e.jsonl", good + "{\"text\": 5}\n"), HasSubstr("e.jsonl:2: column 'text': expected a string"));
  EXPECT_THAT(ErrorOf("f.jsonl", "{\"x\": 1}\n"),
              AllOf(HasSubstr("f.jsonl:1: missing columns"), HasSubstr("found columns x")));
  EXPECT_THAT(ErrorOf("g.json", "[\n{\"text\": \"a\"},\n{\"text\": \"b\""), HasSubstr("g.json:3: malformed JSON"));
  EXPECT_THAT(ErrorOf("h.json", "[\n{\"text\": \"a\"}\n{\"text\": \"b\"}]"),
              HasSubstr("h.json:3: malformed JSON: expected ','"));
  EXPECT_THAT(ErrorOf("i.json", "[{\"text\": \"a\"},\n]"), HasSubstr("i.json:2: malformed JSON: a comma"));
  EXPECT_THAT(ErrorOf("j.json", "[{\"text\": \"a\"}]\nx"), HasSubstr("j.json:2: malformed JSON: text after"));
  EXPECT_THAT(ErrorOf("k.json", "[{\"text\": \"a\"}\n"), HasSubstr("malformed JSON: the array does not end"));
  EXPECT_THAT(ErrorOf("l.json", "[{\"text\":\n \"\xFF\"}]"), HasSubstr("l.json:2: invalid UTF-8"));
  EXPECT_THAT(ErrorOf("m.txt", "a\nb\n\xE9\n"), HasSubstr("m.txt:3: invalid UTF-8 (byte 0xE9)"));
  EXPECT_THAT(ErrorOf("n.jsonl", std::string("\xFF\xFE{\0", 4)), HasSubstr("UTF-16"));
  EXPECT_THAT(ErrorOf("o.csv", "a,b\n"), HasSubstr("expected a name that ends with .json"));
  EXPECT_THAT(ErrorOf("p.json", "hello"), HasSubstr("p.json:1: expected '['"));
  for (const char* empty : {"q.jsonl", "q.json", "q.txt"}) EXPECT_THAT(ErrorOf(empty, " \n"), HasSubstr("no rows"));
  EXPECT_THAT(ErrorOf("r.json", "[]"), HasSubstr("no rows"));
  EXPECT_THAT(ErrorOf("s.jsonl", "{\"text\": \"" + std::string(100, '[')), HasSubstr("s.jsonl:1: malformed JSON"));
  EXPECT_EQ(ReadFileOnly(Path("none.json")).status.code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(ReadFileOnly(folder_.string()).status.message(), HasSubstr("folder"));
}

TEST_F(DatasetTest, MalformedMessages) {
  const auto error = [&](const std::string& messages) {
    return ErrorOf("m.jsonl", "{\"messages\": " + messages + "}");
  };
  EXPECT_THAT(error("[]"), HasSubstr("m.jsonl:1: column 'messages': expected a list of messages"));
  EXPECT_THAT(error("\"x\""), HasSubstr("found string"));
  EXPECT_THAT(error("[1]"), HasSubstr("messages[0]: expected an object"));
  EXPECT_THAT(error(R"([{"role": "king", "content": "x"}])"), HasSubstr("unknown role 'king'"));
  EXPECT_THAT(error(R"([{"content": "x"}])"), HasSubstr("'role' or 'from'"));
  EXPECT_THAT(error(R"([{"role": "user"}])"), HasSubstr("'content' or 'value'"));
  EXPECT_THAT(error(R"([{"role": "user", "content": 3}])"), HasSubstr("messages[0].content: expected a string"));
  EXPECT_THAT(error(R"([{"role": "user", "content": [{"type": "image"}]}])"), HasSubstr("type text only"));
  EXPECT_THAT(error(R"([{"role": "assistant", "content": "", "tool_calls": [{}]}])"), HasSubstr("tool_calls"));
}

TEST_F(DatasetTest, DamagedZstdIsDataLoss) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += "{\"text\": \"row " + std::to_string(i * 7919) + "\"}\n";
  const std::string packed = Compress(text);
  EXPECT_EQ(ReadFileOnly(Write("a.jsonl.zst", packed)).rows.size(), 5000u);
  Rows rows = ReadFileOnly(Write("b.jsonl.zst", packed.substr(0, packed.size() - 9)));
  EXPECT_EQ(rows.status.code(), absl::StatusCode::kDataLoss) << rows.status;
  std::string flipped = packed;
  for (size_t i = packed.size() / 2; i < packed.size() / 2 + 40; ++i) flipped[i] = static_cast<char>(~flipped[i]);
  rows = ReadFileOnly(Write("c.jsonl.zst", flipped));
  EXPECT_FALSE(rows.status.ok());
}

TEST(Utf8Test, FirstInvalidByte) {
  EXPECT_EQ(FindInvalidUtf8("aé€😀"), -1);
  EXPECT_EQ(FindInvalidUtf8("a\xC0\x80"), 1);
  EXPECT_EQ(FindInvalidUtf8("\xED\xA0\x80"), 0);
  EXPECT_EQ(FindInvalidUtf8("\xF4\x90\x80\x80"), 0);
  EXPECT_EQ(FindInvalidUtf8("ab\xE2\x82"), 2);
  EXPECT_EQ(FindInvalidUtf8("\x80"), 0);
}

TEST(DatasetAssetsTest, EveryAssetReads) {
  const std::string folder = AssetsFolder() + "datasets/";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no test assets in " << folder;
  struct Case {
    const char* file;
    RowForm form;
    size_t rows;
    const char* separator;
  };
  const Case cases[] = {{"alpaca_en_demo.json", RowForm::kAlpaca, 999, ""},
                        {"alpaca_tiny.json", RowForm::kAlpaca, 100, ""},
                        {"gpteacher_codegen.json", RowForm::kAlpaca, 4535, ""},
                        {"gsm8k_train.jsonl", RowForm::kPromptCompletion, 7473, ""},
                        {"glaive_toolcall_en_demo.json", RowForm::kMessages, 300, ""},
                        {"kto_en_demo.json", RowForm::kMessages, 300, ""},
                        {"c4_demo.jsonl", RowForm::kText, 300, ""},
                        {"tinystories_sample.txt", RowForm::kText, 2317, "<|endoftext|>"},
                        {"tinyshakespeare.txt", RowForm::kText, 2, ""},
                        {"books-valid.jsonl.zst", RowForm::kText, 0, ""}};
  for (const Case& c : cases) {
    DatasetOptions options = Files({folder + c.file});
    options.text_separator = c.separator;
    const Rows rows = ReadAll(options);
    ASSERT_TRUE(rows.status.ok()) << rows.status;
    if (c.rows > 0) {
      EXPECT_EQ(rows.rows.size(), c.rows) << c.file;
    }
    EXPECT_EQ(rows.rows[0].form, c.form) << c.file;
  }
}

TEST_F(DatasetTest, LabelsAreReadBesideTheRow) {
  DatasetOptions options = Files({Write("a.jsonl", R"({"text": "a", "language": "de", "level": 3}
{"text": "b", "hard": true, "language": null}
)"),
                                  Write("b.txt", "c")});
  options.label_columns = {"language", "level", "hard"};
  const Rows rows = ReadAll(options);
  ASSERT_TRUE(rows.status.ok()) << rows.status;
  ASSERT_EQ(rows.rows.size(), 3);
  EXPECT_EQ(rows.rows[0].labels, (std::vector<std::string>{"de", "3", ""}));
  EXPECT_EQ(rows.rows[1].labels, (std::vector<std::string>{"", "", "true"}));
  EXPECT_EQ(rows.rows[2].labels, (std::vector<std::string>{"", "", ""}));
  options.files = {Write("c.jsonl", "{\"text\": \"a\", \"level\": [1]}\n")};
  EXPECT_THAT(std::string(ReadAll(options).status.message()),
              HasSubstr("c.jsonl:1: column 'level': expected a string, number or boolean, found array"));
}

}  // namespace
}  // namespace thimble
