// Token texts and ids, both ways.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"

namespace thimble {

// Lets maps keyed by std::string be asked with std::string_view.
struct StringHash {
  using is_transparent = void;
  size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
};
template <typename Value>
using StringMap = absl::flat_hash_map<std::string, Value, StringHash, std::equal_to<>>;

class Vocabulary {
 public:
  static constexpr int32_t kNone = -1;

  // False, and nothing added, if the text or the id is taken by another.
  bool Add(std::string_view text, int32_t id) {
    if (id >= 0 && static_cast<size_t>(id) < texts_.size() && present_[static_cast<size_t>(id)]) return false;
    if (!ids_.try_emplace(std::string(text), id).second) return false;
    if (static_cast<size_t>(id) >= texts_.size()) {
      texts_.resize(static_cast<size_t>(id) + 1);
      present_.resize(static_cast<size_t>(id) + 1);
    }
    texts_[static_cast<size_t>(id)] = std::string(text);
    present_[static_cast<size_t>(id)] = true;
    return true;
  }
  int32_t Find(std::string_view text) const {
    const auto found = ids_.find(text);
    return found == ids_.end() ? kNone : found->second;
  }
  bool Has(int32_t id) const { return id >= 0 && id < end() && present_[static_cast<size_t>(id)]; }
  std::string_view Text(int32_t id) const { return Has(id) ? std::string_view(texts_[static_cast<size_t>(id)]) : ""; }
  int32_t end() const { return static_cast<int32_t>(texts_.size()); }  // largest id + 1
  int32_t size() const { return static_cast<int32_t>(ids_.size()); }

 private:
  StringMap<int32_t> ids_;
  std::vector<std::string> texts_;
  std::vector<bool> present_;
};

}  // namespace thimble
