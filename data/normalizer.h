// The normalisers of a tokenizer file, applied in order to a text that keeps track of its origin.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/aligned_text.h"
#include "data/split_pattern.h"

namespace thimble {

struct NormalizerStep {
  enum class Kind { kNfc, kNfd, kNfkc, kNfkd, kPrepend, kReplace, kLowercase, kStrip, kStripAccents };
  Kind kind;
  std::string content = {};                      // kPrepend: what is prepended; kReplace: what replaces each match
  std::optional<SplitPattern> pattern = {};      // kReplace
  bool strip_left = false, strip_right = false;  // kStrip
};

// Valid UTF-8 in, valid UTF-8 out. The result lies in `space` or, if nothing changed, in `text`.
AlignedView Normalize(const std::vector<NormalizerStep>& steps, AlignedView text, RewriteSpace& space, bool track);

}  // namespace thimble
