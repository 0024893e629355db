// What a tokenizer file searches for: a literal string or a regular expression.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/aligned_text.h"
#include "data/regex.h"
#include "data/split_scanner.h"

namespace thimble {

class SplitPattern {
 public:
  static SplitPattern Literal(std::string text);
  static absl::StatusOr<SplitPattern> FromRegex(std::string_view regex);

  // All matches in valid UTF-8, leftmost first, none overlapping.
  void FindAll(std::string_view text, std::vector<ByteSpan>& matches) const;

 private:
  std::string literal_;
  std::optional<SplitScanner> scanner_;
  std::optional<Regex> regex_;
};

}  // namespace thimble
