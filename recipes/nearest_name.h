// The valid name that somebody most likely meant.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace thimble {

// Number of insertions, deletions, replacements and swaps of neighbours that turn `a` into `b`. Compares bytes.
int EditDistance(std::string_view a, std::string_view b);

// The candidate with the smallest edit distance to `name` (the first one of equals), or "" where none is near: more
// than a third of the longer name would have to change. Letters compare without case, '-' as '_'.
std::string NearestName(std::string_view name, const std::vector<std::string>& candidates);

// "; did you mean 'rank'?" or "".
std::string DidYouMean(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace thimble
