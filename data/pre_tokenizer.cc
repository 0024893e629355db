// The pre-tokenizers of a tokenizer file: they cut a text into the words that BPE works on, and may rewrite it.
#include "data/pre_tokenizer.h"

#include <array>

#include "data/unicode.h"

namespace thimble {
namespace {

using Kind = PreTokenizerStep::Kind;

struct ByteTables {
  std::array<char32_t, 256> characters;
  std::array<int16_t, 512> bytes;
};

// Printable Latin-1 stands for itself; the other 68 bytes get U+0100 and the following, ascending.
const ByteTables& Tables() {
  static const ByteTables tables = [] {
    ByteTables result;
    result.bytes.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool itself = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t c = itself ? static_cast<char32_t>(byte) : next++;
      result.characters[static_cast<size_t>(byte)] = c;
      result.bytes[c] = static_cast<int16_t>(byte);
    }
    return result;
  }();
  return tables;
}

// One stretch between cuts: a match of the pattern or the text between two.
struct Part {
  ByteSpan span;
  bool match;
};

void PartsOf(std::string_view text, const std::vector<ByteSpan>& matches, bool invert, std::vector<Part>& parts) {
  parts.clear();
  size_t at = 0;
  for (const ByteSpan& match : matches) {
    if (at != match.begin) parts.push_back({{at, match.begin}, invert});
    parts.push_back({match, !invert});
    at = match.end;
  }
  if (at != text.size()) parts.push_back({{at, text.size()}, invert});
}

// Joins neighbouring parts as the behaviour says; the parts' order stays.
void Merge(SplitBehavior behavior, std::vector<Part>& parts) {
  std::vector<Part> merged;
  bool previous = false;
  if (behavior == SplitBehavior::kMergedWithNext) {
    for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
      if (part->match && !previous && !merged.empty()) {
        merged.back().span.begin = part->span.begin;
      } else {
        merged.push_back(*part);
      }
      previous = part->match;
    }
    parts.assign(merged.rbegin(), merged.rend());
    return;
  }
  for (const Part& part : parts) {
    const bool join = behavior == SplitBehavior::kContiguous ? part.match == previous : part.match && !previous;
    if (join && !merged.empty()) {
      merged.back().span.end = part.span.end;
    } else {
      merged.push_back(part);
    }
    previous = part.match;
  }
  parts = std::move(merged);
}

// Cuts one word at the matches, which are relative to it, and appends the pieces.
void Cut(std::string_view text, ByteSpan word, const std::vector<ByteSpan>& matches, SplitBehavior behavior,
         bool invert, std::vector<Part>& parts, std::vector<ByteSpan>& out) {
  PartsOf(text.substr(word.begin, word.end - word.begin), matches, invert, parts);
  if (behavior != SplitBehavior::kRemoved && behavior != SplitBehavior::kIsolated) Merge(behavior, parts);
  for (const Part& part : parts) {
    if (behavior == SplitBehavior::kRemoved && part.match) continue;
    if (part.span.begin == part.span.end) continue;
    out.push_back({word.begin + part.span.begin, word.begin + part.span.end});
  }
}

void Split(const SplitPattern& pattern, SplitBehavior behavior, bool invert, std::string_view text,
           std::vector<ByteSpan>& words) {
  std::vector<ByteSpan> matches, out;
  std::vector<Part> parts;
  for (const ByteSpan& word : words) {
    pattern.FindAll(text.substr(word.begin, word.end - word.begin), matches);
    Cut(text, word, matches, behavior, invert, parts, out);
  }
  words = std::move(out);
}

void SplitDigits(bool individual, std::string_view text, std::vector<ByteSpan>& words) {
  const uint8_t* classes = CharClasses();
  std::vector<ByteSpan> out;
  for (const ByteSpan& word : words) {
    size_t begin = word.begin;
    bool previous = false;
    for (size_t at = word.begin; at < word.end;) {
      const CodePoint c = DecodeUtf8(text.data() + at);
      const bool number = (classes[c.value] & kClassNumeric) != 0;
      if (at > begin && (number != previous || (number && individual))) {
        out.push_back({begin, at});
        begin = at;
      }
      previous = number;
      at += static_cast<size_t>(c.length);
    }
    if (begin < word.end) out.push_back({begin, word.end});
  }
  words = std::move(out);
}

void AddPrefixSpace(AlignedView& text, std::vector<ByteSpan>& words, RewriteSpace& space, bool track) {
  Rewriter out(text, space, track);
  for (ByteSpan& word : words) {
    const size_t begin = out.size();
    if (text.text[word.begin] != ' ') out.Replace(word.begin, word.begin, " ");
    out.Keep(word.begin, word.end);
    word = {begin, out.size()};
  }
  text = out.Finish();
}

void MapBytes(AlignedView& text, std::vector<ByteSpan>& words, RewriteSpace& space, bool track) {
  Rewriter out(text, space, track);
  std::string mapped;
  for (ByteSpan& word : words) {
    const size_t begin = out.size();
    for (size_t at = word.begin; at < word.end; ++at) {
      mapped.clear();
      AppendUtf8(ByteToCharacter(static_cast<unsigned char>(text.text[at])), mapped);
      out.Replace(at, at + 1, mapped);
    }
    word = {begin, out.size()};
  }
  text = out.Finish();
}

void Metaspace(const PreTokenizerStep& step, AlignedView& text, std::vector<ByteSpan>& words, RewriteSpace& space,
               bool track) {
  Rewriter out(text, space, track);
  for (ByteSpan& word : words) {
    const size_t begin = out.size();
    const std::string_view content = text.text.substr(word.begin, word.end - word.begin);
    const bool has_it = content[0] == ' ' || content.substr(0, step.replacement.size()) == step.replacement;
    const bool wanted = step.prepend == PreTokenizerStep::Prepend::kAlways ||
                        (step.prepend == PreTokenizerStep::Prepend::kFirst && text.BeginOf(word.begin) == 0);
    if (wanted && !has_it) out.Replace(word.begin, word.begin, step.replacement);
    size_t at = word.begin;
    while (at < word.end) {
      const size_t stop = std::min(text.text.find(' ', at), word.end);
      out.Keep(at, stop);
      if (stop < word.end) out.Replace(stop, stop + 1, step.replacement);
      at = stop + 1;
    }
    word = {begin, out.size()};
  }
  text = out.Finish();
  if (step.split) {
    Split(SplitPattern::Literal(step.replacement), SplitBehavior::kMergedWithNext, false, text.text, words);
  }
}

}  // namespace

char32_t ByteToCharacter(unsigned char byte) { return Tables().characters[byte]; }

int CharacterToByte(char32_t c) { return c < 512 ? Tables().bytes[c] : -1; }

bool PreTokenizer::ends_in_byte_level() const { return !steps_.empty() && steps_.back().kind == Kind::kByteLevel; }

bool PreTokenizer::needs_origin() const {
  for (const PreTokenizerStep& step : steps_) {
    if (step.kind == Kind::kMetaspace && step.prepend == PreTokenizerStep::Prepend::kFirst) return true;
  }
  return false;
}

void PreTokenizer::Run(AlignedView& text, std::vector<ByteSpan>& words, RewriteSpace& space, bool track) const {
  words.clear();
  if (text.text.empty()) return;
  words.push_back({0, text.text.size()});
  for (const PreTokenizerStep& step : steps_) {
    switch (step.kind) {
      case Kind::kSplit:
        Split(*step.pattern, step.behavior, step.invert, text.text, words);
        break;
      case Kind::kDigits:
        SplitDigits(step.individual_digits, text.text, words);
        break;
      case Kind::kMetaspace:
        Metaspace(step, text, words, space, track);
        break;
      case Kind::kByteLevel:
        if (step.add_prefix_space) AddPrefixSpace(text, words, space, track);
        if (step.pattern) Split(*step.pattern, SplitBehavior::kIsolated, false, text.text, words);
        if (map_bytes_ || &step != &steps_.back()) MapBytes(text, words, space, track);
        break;
    }
  }
}

}  // namespace thimble
