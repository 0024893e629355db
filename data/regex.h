// Regular expressions of tokenizer files: written for Oniguruma with Unicode 16, matched by PCRE2.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/aligned_text.h"

namespace thimble {

// May be used from several threads at once.
class Regex {
 public:
  // InvalidArgument for a malformed pattern and for the few forms that mean something else in the two engines.
  static absl::StatusOr<Regex> Compile(std::string_view pattern);

  // All matches in valid UTF-8, leftmost first, none overlapping. Case folding and the classes of characters newer than
  // Unicode 14 follow their category only.
  void FindAll(std::string_view text, std::vector<ByteSpan>& matches) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;
};

}  // namespace thimble
