// The pre-tokenizers of a tokenizer file: they cut a text into the words that BPE works on, and may rewrite it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "data/aligned_text.h"
#include "data/split_pattern.h"

namespace thimble {

// What becomes of the matches of a splitting pattern. For "a-b--c" and "-":
//   kRemoved a|b|c   kIsolated a|-|b|-|-|c   kMergedWithPrevious a-|b-|-|c   kMergedWithNext a|-b|-|-c
//   kContiguous a|-|b|--|c
enum class SplitBehavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };

struct PreTokenizerStep {
  enum class Kind { kByteLevel, kSplit, kMetaspace, kDigits };
  enum class Prepend { kFirst, kNever, kAlways };
  Kind kind;
  std::optional<SplitPattern> pattern = {};           // kSplit; kByteLevel with a regular expression
  SplitBehavior behavior = SplitBehavior::kIsolated;  // kSplit
  bool invert = false;                                // kSplit: matches and the rest change places
  bool add_prefix_space = false;                      // kByteLevel
  std::string replacement = {};                       // kMetaspace: what a space becomes
  Prepend prepend = Prepend::kAlways;                 // kMetaspace
  bool split = true;                                  // kMetaspace: cut before each replacement
  bool individual_digits = false;                     // kDigits
};

// Metaspace with kFirst follows the reference but for one case: if a Replace normaliser turned the first two or more
// characters of a text into others, the reference sees no beginning of the text there, and this does.
class PreTokenizer {
 public:
  // With `map_bytes` the last ByteLevel step writes each byte as its stand-in character; without it, that step leaves
  // the bytes to a model that reads them itself. A ByteLevel step before the last one always writes stand-ins.
  explicit PreTokenizer(std::vector<PreTokenizerStep> steps) : steps_(std::move(steps)) {}

  bool ends_in_byte_level() const;
  bool needs_origin() const;  // whether Run asks where in the original a word begins
  void set_map_bytes(bool map_bytes) { map_bytes_ = map_bytes; }

  // Cuts `text` into `words`, spans of `text`, which is replaced if a step rewrites it. Words are never empty.
  void Run(AlignedView& text, std::vector<ByteSpan>& words, RewriteSpace& space, bool track) const;

 private:
  std::vector<PreTokenizerStep> steps_;
  bool map_bytes_ = true;
};

// The GPT-2 mapping: the character that stands for a byte, and back (-1: stands for none).
char32_t ByteToCharacter(unsigned char byte);
int CharacterToByte(char32_t c);

}  // namespace thimble
