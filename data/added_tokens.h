// Added tokens: strings recognised in the text as a whole, before and after normalisation.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "data/aligned_text.h"

namespace thimble {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool single_word = false;  // only where neither neighbour is a word character
  bool lstrip = false;       // takes the white space before it
  bool rstrip = false;       // and after it
  bool normalized = false;   // looked for in normalised text
  bool special = false;
};

// A set of tokens looked for together: leftmost, then longest.
class AddedTokenMatcher {
 public:
  struct Part {
    int32_t id;  // -1: text between tokens
    ByteSpan span;
  };

  // `pattern`: what is looked for, not empty; of equal patterns the first counts.
  void Add(std::string_view pattern, const AddedToken& token);
  void Prepare();  // after the last Add
  bool empty() const { return nodes_.size() <= 1; }

  // Cuts `text` into tokens and the stretches between them, none of which is empty.
  void Split(std::string_view text, std::vector<Part>& parts) const;

 private:
  struct Node {
    std::vector<std::pair<char, int32_t>> children;
    int32_t token = -1;
  };
  // The longest pattern at `at`: its token's index and its end, or -1.
  int32_t LongestAt(std::string_view text, size_t at, size_t& end) const;

  std::vector<Node> nodes_{1};
  std::vector<AddedToken> tokens_;
  bool first_bytes_[256] = {};
  std::string first_byte_list_;
};

}  // namespace thimble
