// Added tokens: strings recognised in the text as a whole, before and after normalisation.
#include "data/added_tokens.h"

#include <algorithm>
#include <cstring>

#include "data/unicode.h"

namespace thimble {
namespace {

size_t PreviousStart(std::string_view text, size_t at) {
  do --at;
  while (IsContinuationByte(text[at]));
  return at;
}

bool HasClass(std::string_view text, size_t at, uint8_t bits) {
  return (CharClasses()[DecodeUtf8(text.data() + at).value] & bits) != 0;
}

bool StandsAlone(std::string_view text, size_t begin, size_t end) {
  if (begin > 0 && HasClass(text, PreviousStart(text, begin), kClassWord)) return false;
  return end == text.size() || !HasClass(text, end, kClassWord);
}

}  // namespace

void AddedTokenMatcher::Add(std::string_view pattern, const AddedToken& token) {
  size_t node = 0;
  for (const char c : pattern) {
    auto& children = nodes_[node].children;
    const auto child =
        std::find_if(children.begin(), children.end(), [c](const auto& entry) { return entry.first == c; });
    if (child != children.end()) {
      node = static_cast<size_t>(child->second);
      continue;
    }
    children.emplace_back(c, static_cast<int32_t>(nodes_.size()));
    node = nodes_.size();
    nodes_.emplace_back();
  }
  if (nodes_[node].token >= 0) return;
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  tokens_.push_back(token);
}

void AddedTokenMatcher::Prepare() {
  for (const auto& child : nodes_[0].children) {
    first_bytes_[static_cast<unsigned char>(child.first)] = true;
    first_byte_list_.push_back(child.first);
  }
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t at, size_t& end) const {
  int32_t best = -1;
  size_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto& children = nodes_[node].children;
    const char c = text[i];
    const auto child =
        std::find_if(children.begin(), children.end(), [c](const auto& entry) { return entry.first == c; });
    if (child == children.end()) break;
    node = static_cast<size_t>(child->second);
    if (nodes_[node].token >= 0) {
      best = nodes_[node].token;
      end = i + 1;
    }
  }
  return best;
}

void AddedTokenMatcher::Split(std::string_view text, std::vector<Part>& parts) const {
  parts.clear();
  size_t done = 0, at = 0;
  while (at < text.size() && !empty()) {
    if (first_byte_list_.size() == 1) {
      const void* found = std::memchr(text.data() + at, first_byte_list_[0], text.size() - at);
      if (found == nullptr) break;
      at = static_cast<size_t>(static_cast<const char*>(found) - text.data());
    } else if (!first_bytes_[static_cast<unsigned char>(text[at])]) {
      ++at;
      continue;
    }
    size_t end = 0;
    const int32_t index = LongestAt(text, at, end);
    if (index < 0) {
      ++at;
      continue;
    }
    const AddedToken& token = tokens_[static_cast<size_t>(index)];
    size_t begin = at, stop = end;
    at = end;
    if (token.single_word && !StandsAlone(text, begin, stop)) continue;
    if (token.lstrip) {
      while (begin > done && HasClass(text, PreviousStart(text, begin), kClassSpace))
        begin = PreviousStart(text, begin);
    }
    if (token.rstrip) {
      while (stop < text.size() && HasClass(text, stop, kClassSpace)) {
        stop += static_cast<size_t>(DecodeUtf8(text.data() + stop).length);
      }
    }
    begin = std::max(begin, std::min(done, stop));  // white space the token before has taken
    if (done < begin) parts.push_back({-1, {done, begin}});
    parts.push_back({token.id, {begin, stop}});
    done = std::max(done, stop);
  }
  if (done < text.size()) parts.push_back({-1, {done, text.size()}});
}

}  // namespace thimble
