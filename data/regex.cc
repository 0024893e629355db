// Regular expressions of tokenizer files: translated from Oniguruma's syntax, matched by PCRE2.
#include "data/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "absl/strings/str_cat.h"
#include "data/unicode.h"
#include "ops/check.h"

namespace thimble {
namespace {

// Oniguruma's word characters, in a class and outside one, where Latin-1 numbers belong to them; PCRE2's own \w leaves
// marks out.
constexpr std::string_view kWordInClass = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}";
constexpr std::string_view kWord = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{B2}\\x{B3}\\x{B9}\\x{BC}-\\x{BE}";

absl::Status Unsupported(std::string_view pattern, std::string_view form) {
  return absl::InvalidArgumentError(absl::StrCat("the regular expression \"", std::string(pattern), "\" uses ",
                                                 std::string(form), ", which Thimble does not support"));
}

// Rewrites what PCRE2 reads differently; refuses what cannot be rewritten.
class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  absl::StatusOr<std::string> Translate() {
    while (at_ < pattern_.size()) {
      RETURN_IF_ERROR(in_class_ ? ClassStep() : Step());
    }
    return std::move(out_);
  }

 private:
  bool Next(char c) const { return at_ + 1 < pattern_.size() && pattern_[at_ + 1] == c; }
  void Copy(size_t count) {
    out_.append(pattern_.substr(at_, count));
    at_ += count;
  }

  absl::Status Step() {
    const char c = pattern_[at_];
    if (c == '\\') return Escape();
    // Possessive for PCRE2, a repeated repetition for Oniguruma.
    if (c == '}' && Next('+')) return Unsupported(pattern_, "{n,m}+");
    if (c == '[') {
      in_class_ = true;
      Copy(Next('^') ? 2 : 1);
      if (at_ < pattern_.size() && pattern_[at_] == ']')
        return Unsupported(pattern_, "an unescaped ] first in a class");
      return absl::OkStatus();
    }
    if (c == '(' && (pattern_.substr(at_, 3) == "(?m" || pattern_.substr(at_, 3) == "(?s")) {
      return Unsupported(pattern_, "the flags m and s");
    }
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status ClassStep() {
    const char c = pattern_[at_];
    if (c == '\\') return Escape();
    if (c == '&' && Next('&')) return Unsupported(pattern_, "&& in a class");
    if (c == '[') {
      const size_t end = Next(':') ? pattern_.find(":]", at_ + 2) : std::string_view::npos;
      if (end == std::string_view::npos) return Unsupported(pattern_, "a class inside a class");
      Copy(end + 2 - at_);
      return absl::OkStatus();
    }
    if (c == ']') in_class_ = false;
    Copy(1);
    return absl::OkStatus();
  }

  absl::Status Escape() {
    if (at_ + 1 >= pattern_.size()) return Unsupported(pattern_, "a backslash at the end");
    std::string replacement;
    switch (pattern_[at_ + 1]) {
      case 'w':
        replacement = in_class_ ? std::string(kWordInClass) : absl::StrCat("[", std::string(kWord), "]");
        break;
      case 'W':
        if (in_class_) return Unsupported(pattern_, "\\W in a class");
        replacement = absl::StrCat("[^", std::string(kWord), "]");
        break;
      case 'b':
      case 'B':
        if (!in_class_) replacement = WordBoundary(pattern_[at_ + 1] == 'b');
        break;
      case 'h':
        replacement = in_class_ ? "0-9a-fA-F" : "[0-9a-fA-F]";
        break;
      case 'H':
      case 'R':
      case 'X':
      case 'K':
      case 'G':
      case 'Z':
      case 'O':
      case 'N':
      case 'y':
      case 'Y':
        return Unsupported(pattern_, absl::StrCat("\\", std::string(1, pattern_[at_ + 1])).c_str());
      default:
        break;
    }
    if (replacement.empty()) {
      // \p{...} and its like: the brace belongs to the escape.
      const size_t end = at_ + 2 < pattern_.size() && pattern_[at_ + 2] == '{' ? pattern_.find('}', at_) : at_ + 1;
      Copy(end == std::string_view::npos ? 2 : end + 1 - at_);
    } else {
      out_ += replacement;
      at_ += 2;
    }
    return absl::OkStatus();
  }

  static std::string WordBoundary(bool positive) {
    const std::string word = absl::StrCat("[", std::string(kWord), "]");
    return absl::StrCat("(?:(?<=", word, ")(?", positive ? "!" : "=", word, ")|(?<!", word, ")(?", positive ? "=" : "!",
                        word, "))");
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
  bool in_class_ = false;
};

}  // namespace

struct Regex::Code {
  Code() : context(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(context, UINT32_MAX);
    pcre2_set_depth_limit(context, UINT32_MAX);
    pcre2_set_heap_limit(context, UINT32_MAX);
  }
  ~Code() {
    pcre2_match_context_free(context);
    pcre2_code_free(code);
  }
  pcre2_code* code = nullptr;
  pcre2_match_context* context;  // only read while matching
};

absl::StatusOr<Regex> Regex::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, Translator(pattern).Translate());
  int error = 0;
  PCRE2_SIZE place = 0;
  pcre2_compile_context* context = pcre2_compile_context_create(nullptr);
  pcre2_set_newline(context, PCRE2_NEWLINE_LF);
  // In Oniguruma's Ruby syntax ^ and $ stand at every line. \C would cut characters.
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                    PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &place, context);
  pcre2_compile_context_free(context);
  if (code == nullptr) {
    PCRE2_UCHAR message[256];
    pcre2_get_error_message(error, message, sizeof(message));
    return absl::InvalidArgumentError(absl::StrCat("bad regular expression \"", std::string(pattern),
                                                   "\": ", reinterpret_cast<const char*>(message)));
  }
  auto owned = std::make_shared<Code>();
  owned->code = code;
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // without it pcre2_match interprets: slower, the same matches
  return Regex(std::move(owned));
}

void Regex::FindAll(std::string_view text, std::vector<ByteSpan>& matches) const {
  matches.clear();
  std::string substitute;
  if (SubstituteNewerCharacters(text, substitute)) text = substitute;
  using MatchData = std::unique_ptr<pcre2_match_data, decltype(&pcre2_match_data_free)>;
  const MatchData data(pcre2_match_data_create_from_pattern(code_->code, nullptr), &pcre2_match_data_free);
  const PCRE2_SPTR subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  const auto match = [&](size_t at, uint32_t options) {
    return pcre2_match(code_->code, subject, text.size(), at, options | PCRE2_NO_UTF_CHECK, data.get(), code_->context);
  };
  size_t at = 0;
  while (at <= text.size()) {
    int found = match(at, 0);
    if (found < 0 && found != PCRE2_ERROR_NOMATCH) {  // the JIT's stack is bounded, the interpreter's heap is not
      found = match(at, PCRE2_NO_JIT);
      CHECK(found >= 0 || found == PCRE2_ERROR_NOMATCH) << "PCRE2 gave up with error " << found;
    }
    if (found < 0) return;
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(data.get());
    matches.push_back({ends[0], ends[1]});
    at = ends[1];
    if (ends[1] == ends[0]) {
      if (at >= text.size()) return;
      at += static_cast<size_t>(DecodeUtf8(text.data() + at).length);
    }
  }
}

}  // namespace thimble
