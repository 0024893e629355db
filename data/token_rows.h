// Tokenised rows: lengths in memory, tokens and target masks in memory or in a cache file, read row by row.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/hdf5_file.h"

namespace thimble {

// is_target[t]: token t is to be predicted (from the tokens before it). The first token never is.
struct EncodedRow {
  std::vector<int32_t> tokens;
  std::vector<uint8_t> is_target;
};

class TokenRows {
 public:
  TokenRows() = default;
  // Rows of a file with the entries begins [rows + 1], first_target, num_targets [rows] (i64), tokens (i32) and
  // is_target (u8) [tokens]. The file stays open. DataLoss when they do not fit together.
  static absl::StatusOr<TokenRows> FromFile(Hdf5Reader file);
  // Adds the first three of those entries; the rows must outlive the writer.
  void AddIndexTo(Hdf5Writer* writer) const;
  // Moves tokens and masks out and keeps lengths and counts, for a writer that collects them; Read is over then.
  void TakePayload(std::vector<int32_t>* tokens, std::vector<uint8_t>* is_target);
  void Append(const EncodedRow& row);
  // Carries the last row on (long documents come in pieces).
  void ExtendLast(const EncodedRow& row);

  int64_t size() const { return static_cast<int64_t>(begins_.size()) - 1; }
  int64_t length(int64_t row) const { return begins_[row + 1] - begins_[row]; }
  int64_t total_tokens() const { return begins_.back(); }
  // Index within the row of its first target, or length(row) when it has none.
  int64_t first_target(int64_t row) const { return first_target_[row]; }
  int64_t num_targets(int64_t row) const { return num_targets_[row]; }
  // Tokens [first, first + count) of a row; vectors are resized. An error only when the cache file cannot be read.
  absl::Status Read(int64_t row, int64_t first, int64_t count, std::vector<int32_t>* tokens,
                    std::vector<uint8_t>* is_target) const;

 private:
  std::vector<int64_t> begins_ = {0};
  std::vector<int64_t> first_target_;
  std::vector<int64_t> num_targets_;
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> is_target_;
  std::shared_ptr<const Hdf5Reader> file_;  // null: in memory
};

}  // namespace thimble
