// Small text helpers shared by the chat formats.
#pragma once

#include <string>
#include <string_view>

namespace thimble {

// Without white space at both ends, as Python's str.strip (Unicode's white space and U+001C to U+001F).
std::string StripSpace(std::string_view text);
// Without newlines at the start, or at both ends.
std::string StripNewlinesLeft(std::string_view text);
std::string StripNewlines(std::string_view text);
// A JSON string literal, characters beyond ASCII as they are (jinja's tojson as chat templates use it).
std::string JsonString(std::string_view text);

}  // namespace thimble
