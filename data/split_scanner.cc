// Hand-written scanners for the splitting expressions of GPT-2, Llama 3 and Qwen 2. Each alternative of the expression
// is tried in its order; the first that matches wins.
#include "data/split_scanner.h"

#include "data/unicode.h"

namespace thimble {
namespace {

constexpr uint8_t kAnyClass = kClassLetter | kClassNumber | kClassSpace;

class Scanner {
 public:
  explicit Scanner(std::string_view text) : text_(text), classes_(CharClasses()) {}

  // End of `[^\s\p{L}\p{N}]+`, `\p{L}+` or `\p{N}+` from `at`: characters whose class is `wanted` (0: none of the
  // three).
  size_t RunEnd(size_t at, uint8_t wanted) const {
    while (at < text_.size()) {
      const CodePoint c = At(at);
      if ((classes_[c.value] & kAnyClass) != wanted) break;
      at += static_cast<size_t>(c.length);
    }
    return at;
  }

  // `'s|'t|'re|'ve|'m|'ll|'d` from the apostrophe at `at`; 0 if none matches. Upper case and U+017F only if folded.
  size_t ContractionEnd(size_t at, bool fold) const {
    const auto letter = [this, fold](size_t i) -> char {
      if (i >= text_.size()) return '\0';
      const char c = text_[i];
      return fold && c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c;
    };
    const char first = letter(at + 1);
    if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
    const char second = letter(at + 2);
    if ((first == 'r' && second == 'e') || (first == 'v' && second == 'e') || (first == 'l' && second == 'l')) {
      return at + 3;
    }
    return fold && text_.substr(at + 1, 2) == "\xC5\xBF" ? at + 3 : 0;
  }

  // `\s+(?!\S)|\s+` from white space at `at`; with `newlines`, `\s*[\r\n]+` before them.
  size_t SpaceEnd(size_t at, bool newlines) const {
    size_t end = at, last = at, after_newline = 0;
    while (end < text_.size()) {
      const CodePoint c = At(end);
      if ((classes_[c.value] & kClassSpace) == 0) break;
      last = end;
      end += static_cast<size_t>(c.length);
      if (c.value == '\n' || c.value == '\r') after_newline = end;
    }
    if (newlines && after_newline > 0) return after_newline;
    return end == text_.size() || last == at ? end : last;
  }

  size_t Gpt2End(size_t at) const {
    if (text_[at] == '\'') {
      if (const size_t end = ContractionEnd(at, false); end > 0) return end;
    }
    const size_t start = text_[at] == ' ' && at + 1 < text_.size() ? at + 1 : at;
    const uint8_t wanted = ClassAt(start);
    if (wanted != kClassSpace) return RunEnd(start, wanted);
    return SpaceEnd(at, false);
  }

  // Llama 3 and Qwen 2 differ in the number of digits taken together.
  size_t Llama3End(size_t at, int max_digits) const {
    const CodePoint c = At(at);
    if (c.value == '\'') {
      if (const size_t end = ContractionEnd(at, true); end > 0) return end;
    }
    const uint8_t first = classes_[c.value] & kAnyClass;
    if (first == kClassLetter) return RunEnd(at, kClassLetter);
    if (first == kClassNumber) {
      size_t end = at;
      for (int i = 0; i < max_digits && end < text_.size() && ClassAt(end) == kClassNumber; ++i) {
        end += static_cast<size_t>(At(end).length);
      }
      return end;
    }
    const size_t next = at + static_cast<size_t>(c.length);
    const bool has_next = next < text_.size();
    if (has_next && c.value != '\r' && c.value != '\n' && ClassAt(next) == kClassLetter) {
      return RunEnd(next, kClassLetter);
    }
    if (first == 0) return NewlinesEnd(RunEnd(at, 0));
    if (c.value == ' ' && has_next && ClassAt(next) == 0) return NewlinesEnd(RunEnd(next, 0));
    return SpaceEnd(at, true);
  }

 private:
  CodePoint At(size_t i) const { return DecodeUtf8(text_.data() + i); }
  uint8_t ClassAt(size_t i) const { return classes_[At(i).value] & kAnyClass; }
  size_t NewlinesEnd(size_t at) const {
    while (at < text_.size() && (text_[at] == '\r' || text_[at] == '\n')) ++at;
    return at;
  }

  std::string_view text_;
  const uint8_t* classes_;
};

}  // namespace

std::optional<SplitScanner> ScannerFor(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return SplitScanner::kGpt2;
  if (pattern == kLlama3Pattern) return SplitScanner::kLlama3;
  if (pattern == kQwen2Pattern) return SplitScanner::kQwen2;
  return std::nullopt;
}

void ScanAll(SplitScanner scanner, std::string_view text, std::vector<ByteSpan>& matches) {
  matches.clear();
  const Scanner scan(text);
  for (size_t at = 0; at < text.size();) {
    const size_t end = scanner == SplitScanner::kGpt2 ? scan.Gpt2End(at)
                                                      : scan.Llama3End(at, scanner == SplitScanner::kLlama3 ? 3 : 1);
    matches.push_back({at, end});
    at = end;
  }
}

}  // namespace thimble
