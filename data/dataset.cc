#include "data/dataset.h"

#include <algorithm>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "data/dataset_forms.h"
#include "ops/check.h"

namespace thimble {
namespace {

// Plain text documents longer than this come in pieces.
constexpr size_t kTextPieceBytes = size_t{1} << 20;
constexpr std::string_view kBlank = " \t\r\n";

std::string InvalidUtf8Message(char byte) {
  return absl::StrFormat("invalid UTF-8 (byte 0x%02X); expected UTF-8 text", static_cast<unsigned char>(byte));
}

}  // namespace

absl::Status DatasetReader::AtLine(const absl::Status& status, int64_t line) const {
  return status.ok() ? status : Error(line, std::string(status.message()));
}

absl::Status DatasetReader::Error(int64_t line, const std::string& message) const {
  return absl::InvalidArgumentError(absl::StrCat(options_.files[file_], ":", line, ": ", message));
}

absl::StatusOr<std::unique_ptr<DatasetReader>> DatasetReader::Open(const DatasetOptions& options) {
  if (options.files.empty()) return absl::InvalidArgumentError("the data set names no files");
  if (options.first_row < 0 || options.max_rows < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("first_row and max_rows must be 0 or more; found ", options.first_row, " and ", options.max_rows));
  }
  std::unique_ptr<DatasetReader> reader(new DatasetReader(options));
  reader->form_ = options.form;
  reader->columns_ = options.columns;
  RETURN_IF_ERROR(reader->OpenFile());
  // The form is known once the first row is.
  ASSIGN_OR_RETURN(reader->has_first_row_, reader->NextUncounted(&reader->first_row_));
  if (!reader->has_first_row_) {
    return absl::InvalidArgumentError(absl::StrCat(absl::StrJoin(options.files, ", "), ": no rows"));
  }
  int64_t skipped = 0;
  for (Row row; skipped < options.first_row;) {
    ASSIGN_OR_RETURN(const bool more, reader->Next(&row));
    if (!more) {
      return absl::InvalidArgumentError(absl::StrCat(absl::StrJoin(options.files, ", "), ": only ", skipped,
                                                     " rows, and first_row is ", options.first_row));
    }
    if (!row.continues) ++skipped;
  }
  reader->rows_ = 0;
  reader->limited_ = options.max_rows > 0;
  return reader;
}

absl::StatusOr<bool> DatasetReader::Next(Row* row) {
  if (limited_ && rows_ >= options_.max_rows) return false;
  if (has_first_row_) {
    has_first_row_ = false;
    *row = std::move(first_row_);
  } else {
    ASSIGN_OR_RETURN(const bool more, NextUncounted(row));
    if (!more) return false;
  }
  if (!row->continues) ++rows_;
  return true;
}

absl::StatusOr<bool> DatasetReader::NextUncounted(Row* row) {
  while (true) {
    *row = Row();
    row->file = static_cast<int>(file_);
    row->labels.resize(options_.label_columns.size());
    ASSIGN_OR_RETURN(const bool more, NextInFile(row));
    if (more) return true;
    if (file_ + 1 == options_.files.size()) return false;
    ++file_;
    RETURN_IF_ERROR(OpenFile());
  }
}

absl::Status DatasetReader::OpenFile() {
  const std::string& path = options_.files[file_];
  ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> source, ByteSource::Open(path));
  reader_ = std::make_unique<LineReader>(std::move(source));
  array_started_ = false;
  columns_ = options_.columns;  // files of one form may name their columns differently
  columns_resolved_ = false;
  in_document_ = false;
  document_.clear();
  document_line_ = 1;
  scanned_ = 0;
  RETURN_IF_ERROR(reader_->SkipByteOrderMark());
  ASSIGN_OR_RETURN(const int first, reader_->Peek());
  if (first == 0xFE || first == 0xFF) {
    return Error(1, "the file starts like UTF-16; expected UTF-8 (convert it, e.g. with iconv -f utf-16 -t utf-8)");
  }
  const std::string name(absl::StripSuffix(path, ".zst"));
  const auto ends_with = [&](std::initializer_list<const char*> endings) {
    return std::any_of(endings.begin(), endings.end(), [&](const char* end) { return absl::EndsWith(name, end); });
  };
  if (ends_with({".txt", ".text", ".md", ".raw"})) return OpenText();
  if (!ends_with({".json", ".jsonl", ".ndjson"})) {
    return absl::InvalidArgumentError(absl::StrCat(
        path, ": expected a name that ends with .json, .jsonl, .ndjson, .txt, .text, .md or .raw (each also .zst)"));
  }
  RETURN_IF_ERROR(reader_->SkipSpace());
  ASSIGN_OR_RETURN(const int start, reader_->Peek());
  if (start >= 0 && start != '[' && start != '{') return Error(reader_->line(), "expected '[' or '{' at the start");
  // A line of a JSON lines file is an object, so that '[' tells an array in either kind of file.
  container_ = start == '[' ? Container::kJsonArray : Container::kJsonLines;
  return absl::OkStatus();
}

absl::Status DatasetReader::OpenText() {
  const std::string& path = options_.files[file_];
  container_ = Container::kText;
  if (form_ == RowForm::kAuto) {
    description_ = absl::StrCat("form text: ", path, " is plain text");
  } else if (form_ != RowForm::kText) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": plain text has form text; the data set's form is ", RowFormName(form_)));
  } else if (description_.empty()) {
    description_ = "form text, as given";
  }
  form_ = RowForm::kText;
  return absl::OkStatus();
}

absl::StatusOr<bool> DatasetReader::NextInFile(Row* row) {
  if (container_ == Container::kText) return NextText(row);
  std::string json;
  int64_t line = 0;
  ASSIGN_OR_RETURN(const bool more,
                   container_ == Container::kJsonArray ? NextArrayElement(&json, &line) : NextJsonLine(&json, &line));
  if (!more) return false;
  RETURN_IF_ERROR(ParseRow(json, line, row));
  return true;
}

absl::StatusOr<bool> DatasetReader::NextJsonLine(std::string* json, int64_t* line) {
  while (true) {
    json->clear();
    *line = reader_->line();
    ASSIGN_OR_RETURN(const bool more, reader_->AppendLine(json));
    if (!more) return false;
    if (json->find_first_not_of(" \t\r\n") != std::string::npos) return true;
  }
}

absl::StatusOr<bool> DatasetReader::NextArrayElement(std::string* json, int64_t* line) {
  if (!array_started_) reader_->Take();  // the '['
  RETURN_IF_ERROR(reader_->SkipSpace());
  ASSIGN_OR_RETURN(int next, reader_->Peek());
  if (next == ',' && array_started_) {
    reader_->Take();
    RETURN_IF_ERROR(reader_->SkipSpace());
    ASSIGN_OR_RETURN(next, reader_->Peek());
    if (next == ']') return Error(reader_->line(), "malformed JSON: a comma before ']'");
  } else if (next == ']') {
    reader_->Take();
    RETURN_IF_ERROR(reader_->SkipSpace());
    ASSIGN_OR_RETURN(next, reader_->Peek());
    if (next >= 0) return Error(reader_->line(), "malformed JSON: text after the array's ']'");
    container_ = Container::kJsonLines;  // at the end of the file: no more lines
    return false;
  } else if (array_started_) {
    return Error(reader_->line(), next < 0 ? "malformed JSON: the array does not end with ']'"
                                           : "malformed JSON: expected ',' or ']' after a row");
  }
  array_started_ = true;
  *line = reader_->line();
  ASSIGN_OR_RETURN(const bool complete, reader_->AppendJsonValue(json));
  if (!complete || json->empty()) return Error(*line, "malformed JSON: the file ends within the row that starts here");
  return true;
}

absl::Status DatasetReader::ParseRow(const std::string& json, int64_t line, Row* row) {
  const int64_t invalid = FindInvalidUtf8(json);
  if (invalid >= 0) {
    // An array's row may spread over lines.
    for (int64_t i = 0; i < invalid; ++i) line += json[static_cast<size_t>(i)] == '\n' ? 1 : 0;
    return Error(line, InvalidUtf8Message(json[static_cast<size_t>(invalid)]));
  }
  row->line = line;
  absl::StatusOr<std::unique_ptr<JsonRow>> parsed_or = JsonRow::Parse(json);
  RETURN_IF_ERROR(AtLine(parsed_or.status(), line));
  const std::unique_ptr<JsonRow> parsed = *std::move(parsed_or);
  if (!columns_resolved_) {
    columns_resolved_ = true;
    const bool recognise = form_ == RowForm::kAuto;
    RETURN_IF_ERROR(AtLine(parsed->ResolveColumns(&form_, &columns_), line));
    const std::string found = parsed->DescribeColumns(form_, columns_);
    if (description_.empty()) {
      const char* how = recognise ? ", recognised in the first row: " : ", as given: ";
      description_ = absl::StrCat("form ", RowFormName(form_), how, found);
    } else if (!absl::EndsWith(description_, found)) {
      absl::StrAppend(&description_, "; ", options_.files[file_], ": ", found);
    }
  }
  RETURN_IF_ERROR(AtLine(parsed->FillLabels(options_.label_columns, row), line));
  return AtLine(parsed->Fill(form_, columns_, row), line);
}

// Where a long document may be cut so that its pieces tokenise like the whole: before a line that starts with a word.
size_t DatasetReader::CutPosition() const {
  const size_t reserve = options_.text_separator.size() + 1;  // a separator may have begun at the end
  if (document_.size() < kTextPieceBytes + reserve) return 0;
  for (size_t cut = document_.size() - reserve; cut > 0; --cut) {
    if (document_[cut - 1] == '\n' && kBlank.find(document_[cut]) == std::string_view::npos) return cut;
  }
  return 0;
}

void DatasetReader::TakeText(size_t size, size_t skip, Row* row) {
  row->text = document_.substr(0, size);
  row->line = document_line_;
  for (size_t i = 0; i < size + skip; ++i) document_line_ += document_[i] == '\n' ? 1 : 0;
  document_.erase(0, size + skip);
  scanned_ = 0;
  if (!options_.text_separator.empty()) {
    if (!in_document_) row->text.erase(0, std::min(row->text.find_first_not_of("\r\n"), row->text.size()));
    if (!row->continues) row->text.erase(row->text.find_last_not_of("\r\n") + 1);
  }
}

absl::StatusOr<bool> DatasetReader::NextText(Row* row) {
  const std::string& separator = options_.text_separator;
  while (true) {
    row->form = RowForm::kText;
    const size_t found = separator.empty() ? std::string::npos : document_.find(separator, scanned_);
    const bool was_in_document = in_document_;
    if (found != std::string::npos) {
      TakeText(found, separator.size(), row);
      in_document_ = false;
      // Nothing between two separators is no document.
      if (was_in_document || row->text.find_first_not_of(kBlank) != std::string::npos) return true;
      continue;
    }
    scanned_ = document_.size() < separator.size() ? 0 : document_.size() - separator.size();
    const size_t cut = CutPosition();
    if (cut > 0) {
      row->continues = true;
      TakeText(cut, 0, row);
      in_document_ = true;
      return true;
    }
    const size_t start = document_.size();
    const int64_t line = reader_->line();
    ASSIGN_OR_RETURN(const bool more, reader_->AppendLine(&document_));
    if (!more) {
      TakeText(document_.size(), 0, row);
      in_document_ = false;
      return was_in_document || row->text.find_first_not_of(kBlank) != std::string::npos;
    }
    const int64_t invalid = FindInvalidUtf8(std::string_view(document_).substr(start));
    if (invalid >= 0) return Error(line, InvalidUtf8Message(document_[start + static_cast<size_t>(invalid)]));
  }
}

}  // namespace thimble
