// Training rows from files: JSON array, JSON lines or plain text, each also as .zst, read row by row in bounded memory.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/byte_source.h"

namespace thimble {

enum class RowForm : uint8_t {
  kAuto,              // by the first row (JSON) or kText (plain text files)
  kAlpaca,            // instruction, input, output (or response)
  kMessages,          // messages (role, content) or conversations (from, value)
  kPromptCompletion,  // prompt, completion (or question, answer)
  kText,              // text
};
const char* RowFormName(RowForm form);
// "auto", "alpaca", "messages", "prompt_completion", "text"; another name is InvalidArgument listing these.
absl::StatusOr<RowForm> ParseRowForm(const std::string& name);

// Empty: the usual names are tried (given above, first match wins).
struct ColumnNames {
  std::string instruction, input, output, system;  // alpaca; input and system may be absent from a row
  std::string messages, role, content;             // messages
  std::string prompt, completion;                  // prompt_completion
  std::string text;                                // text
};

struct DatasetOptions {
  std::vector<std::string> files;  // read in this order
  RowForm form = RowForm::kAuto;
  ColumnNames columns;
  std::string text_separator;              // plain text: documents end at it; empty: a file is one document
  int64_t first_row = 0;                   // rows before it are skipped
  int64_t max_rows = 0;                    // 0: all
  std::vector<std::string> label_columns;  // read into Row::labels; they shape no token
};

struct Message {
  std::string role;  // system, user, assistant, tool (result of a call) or function_call (by the assistant)
  std::string content;
};

struct Row {
  RowForm form = RowForm::kText;    // never kAuto
  std::vector<Message> messages;    // all forms but kText; alpaca and prompt_completion: [system,] user, assistant
  std::string input;                // alpaca's input, kept apart because formats place it differently
  std::string text;                 // kText
  std::vector<std::string> labels;  // one a label column: a string, number or boolean as text; empty where absent
  bool continues = false;           // kText: the next row carries the same document on (long documents come in pieces)
  int file = 0;                     // index into DatasetOptions::files
  int64_t line = 0;                 // where the row starts, from 1
};

// Reads all files in order. Errors name file, line, expected and found: NotFound, InvalidArgument (malformed JSON,
// missing column, wrong type, invalid UTF-8, no rows at all) or DataLoss (damaged zstd).
class DatasetReader {
 public:
  static absl::StatusOr<std::unique_ptr<DatasetReader>> Open(const DatasetOptions& options);
  // False after the last row.
  absl::StatusOr<bool> Next(Row* row);
  // Known after Open: the given form or the recognised one.
  RowForm form() const { return form_; }
  // For the log: the form, how it was found, the columns that are read and those that are not.
  const std::string& description() const { return description_; }

 private:
  enum class Container : uint8_t { kJsonArray, kJsonLines, kText };

  explicit DatasetReader(const DatasetOptions& options) : options_(options) {}
  absl::Status OpenFile();
  absl::Status OpenText();
  absl::StatusOr<bool> NextUncounted(Row* row);
  absl::StatusOr<bool> NextInFile(Row* row);
  absl::StatusOr<bool> NextJsonLine(std::string* json, int64_t* line);
  absl::StatusOr<bool> NextArrayElement(std::string* json, int64_t* line);
  absl::Status ParseRow(const std::string& json, int64_t line, Row* row);
  absl::StatusOr<bool> NextText(Row* row);
  size_t CutPosition() const;
  void TakeText(size_t size, size_t skip, Row* row);
  absl::Status Error(int64_t line, const std::string& message) const;
  absl::Status AtLine(const absl::Status& status, int64_t line) const;

  DatasetOptions options_;
  ColumnNames columns_;
  bool columns_resolved_ = false;  // by the first row
  RowForm form_ = RowForm::kAuto;
  std::string description_;
  size_t file_ = 0;
  std::unique_ptr<LineReader> reader_;
  Container container_ = Container::kText;
  bool array_started_ = false;
  bool has_first_row_ = false;  // read ahead by Open
  Row first_row_;
  int64_t rows_ = 0;
  bool limited_ = false;
  // Plain text: read but not yet given out, the line where it starts, how far it has no separator.
  std::string document_;
  int64_t document_line_ = 1;
  size_t scanned_ = 0;
  bool in_document_ = false;  // a piece of it was given out
};

}  // namespace thimble
