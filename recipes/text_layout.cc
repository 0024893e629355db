// Word wrapping.
#include "recipes/text_layout.h"

#include <algorithm>

namespace thimble {
namespace {

constexpr size_t kColumns = 80;

// Appends words of `text` to *out, whose last line is `used` columns long.
void AppendWords(std::string_view text, size_t indent, size_t used, std::string* out) {
  bool first = true;
  while (!text.empty()) {
    const size_t length = std::min(text.size(), text.find(' '));
    const std::string_view word = text.substr(0, length);
    text.remove_prefix(std::min(text.size(), length + 1));
    if (word.empty()) continue;
    if (!first && used + 1 + word.size() > kColumns) {
      out->append("\n").append(indent, ' ');
      used = indent;
    } else if (!first) {
      out->append(" ");
      ++used;
    }
    out->append(word);
    used += word.size();
    first = false;
  }
  out->append("\n");
}

}  // namespace

void AppendWrapped(std::string_view text, size_t indent, std::string* out) {
  out->append(indent, ' ');
  AppendWords(text, indent, indent, out);
}

void AppendEntry(std::string_view name, std::string_view text, size_t column, std::string* out) {
  out->append(name);
  if (name.size() + 1 > column) {
    out->append("\n").append(column, ' ');
  } else {
    out->append(column - name.size(), ' ');
  }
  AppendWords(text, column, column, out);
}

std::string WithPointer(std::string_view message, std::string_view command_line) {
  std::string text(message);
  text.append(text.ends_with('?') ? " See: " : ". See: ");
  return text.append(command_line);
}

}  // namespace thimble
