// Tokenised rows: lengths in memory, tokens and target masks in memory or in a cache file, read row by row.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/hdf5_file.h"
#include "data/row_encoder.h"

namespace thimble {

class TokenRows {
 public:
  TokenRows() = default;
  // Takes the arrays of a verified cache file (see token_cache.h), which stays open.
  static absl::StatusOr<TokenRows> FromFile(Hdf5Reader file);
  void Append(const EncodedRow& row);
  // Carries the last row on (long documents come in pieces).
  void ExtendLast(const EncodedRow& row);

  int64_t size() const { return static_cast<int64_t>(begins_.size()) - 1; }
  int64_t length(int64_t row) const { return begins_[row + 1] - begins_[row]; }
  int64_t total_tokens() const { return begins_.back(); }
  // Index within the row of its first target, or length(row) when it has none.
  int64_t first_target(int64_t row) const { return first_target_[row]; }
  // Tokens [first, first + count) of a row; vectors are resized. An error only when the cache file cannot be read.
  absl::Status Read(int64_t row, int64_t first, int64_t count, std::vector<int32_t>* tokens,
                    std::vector<uint8_t>* is_target) const;

 private:
  std::vector<int64_t> begins_ = {0};
  std::vector<int64_t> first_target_;
  std::vector<int32_t> tokens_;
  std::vector<uint8_t> is_target_;
  std::shared_ptr<const Hdf5Reader> file_;  // null: in memory
};

}  // namespace thimble
