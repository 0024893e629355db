// One JSON row of a data set: which form it has, and its fields.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/dataset.h"

namespace thimble {

// Keeps the JSON library out of headers. Errors name column, expected and found; the caller adds file and line.
class JsonRow {
 public:
  // The text must be valid UTF-8 and one JSON object.
  static absl::StatusOr<std::unique_ptr<JsonRow>> Parse(const std::string& json);
  ~JsonRow();

  // kAuto becomes the form that the columns show; empty names in `columns` become those found.
  absl::Status ResolveColumns(RowForm* form, ColumnNames* columns) const;
  // "columns instruction, output; not used: id" for the log.
  std::string DescribeColumns(RowForm form, const ColumnNames& columns) const;
  // Sets the fields of `row` that `form` has. Columns must be resolved.
  absl::Status Fill(RowForm form, const ColumnNames& columns, Row* row) const;
  // Sets row->labels.
  absl::Status FillLabels(const std::vector<std::string>& columns, Row* row) const;

 private:
  struct Value;
  explicit JsonRow(std::unique_ptr<Value> value);
  absl::StatusOr<std::string> Text(const std::string& column, bool may_be_absent) const;
  absl::Status FillMessages(const ColumnNames& columns, Row* row) const;
  std::string ColumnList() const;

  std::unique_ptr<Value> value_;
};

}  // namespace thimble
