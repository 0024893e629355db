// What a tokenizer file searches for: a literal string or a regular expression.
#include "data/split_pattern.h"

#include "ops/check.h"

namespace thimble {

SplitPattern SplitPattern::Literal(std::string text) {
  SplitPattern pattern;
  pattern.literal_ = std::move(text);
  return pattern;
}

absl::StatusOr<SplitPattern> SplitPattern::FromRegex(std::string_view regex) {
  SplitPattern pattern;
  pattern.scanner_ = ScannerFor(regex);
  if (!pattern.scanner_) {
    ASSIGN_OR_RETURN(pattern.regex_, Regex::Compile(regex));
  }
  return pattern;
}

void SplitPattern::FindAll(std::string_view text, std::vector<ByteSpan>& matches) const {
  if (scanner_) return ScanAll(*scanner_, text, matches);
  if (regex_) return regex_->FindAll(text, matches);
  matches.clear();
  if (literal_.empty()) return;
  for (size_t at = text.find(literal_); at != std::string_view::npos; at = text.find(literal_, at + literal_.size())) {
    matches.push_back({at, at + literal_.size()});
  }
}

}  // namespace thimble
