// The normalisers of a tokenizer file, applied in order to a text that keeps track of its origin.
#include "data/normalizer.h"

#include "data/unicode.h"
#include "data/unicode_normalization.h"
#include "ops/check.h"

namespace thimble {
namespace {

AlignedView Replace(const NormalizerStep& step, const AlignedView& text, RewriteSpace& space, bool track) {
  std::vector<ByteSpan> matches;
  step.pattern->FindAll(text.text, matches);
  if (matches.empty()) return text;
  Rewriter out(text, space, track);
  size_t at = 0;
  for (const ByteSpan& match : matches) {
    out.Keep(at, match.begin);
    out.Replace(match.begin, match.end, step.content);
    at = match.end;
  }
  out.Keep(at, text.text.size());
  return out.Finish();
}

AlignedView Lowercase(const AlignedView& text, RewriteSpace& space, bool track) {
  Rewriter out(text, space, track);
  std::string lower;
  for (size_t at = 0; at < text.text.size();) {
    const CodePoint c = DecodeUtf8(text.text.data() + at);
    const size_t end = at + static_cast<size_t>(c.length);
    lower.clear();
    AppendLowercase(c.value, lower);
    if (lower.size() == end - at) {
      // Same length: byte for byte, as in a text that stays as it is.
      for (size_t i = 0; i < lower.size(); ++i) out.Replace(at + i, at + i + 1, std::string_view(lower).substr(i, 1));
    } else {
      out.Replace(at, end, lower);
    }
    at = end;
  }
  return out.Finish();
}

AlignedView Strip(const NormalizerStep& step, const AlignedView& text, const uint8_t* classes) {
  size_t begin = 0, end = text.text.size();
  while (step.strip_left && begin < end) {
    const CodePoint c = DecodeUtf8(text.text.data() + begin);
    if ((classes[c.value] & kClassSpace) == 0) break;
    begin += static_cast<size_t>(c.length);
  }
  while (step.strip_right && begin < end) {
    size_t last = end - 1;
    while (IsContinuationByte(text.text[last])) --last;
    if ((classes[DecodeUtf8(text.text.data() + last).value] & kClassSpace) == 0) break;
    end = last;
  }
  return text.Slice(begin, end);
}

AlignedView StripAccents(const AlignedView& text, RewriteSpace& space, bool track) {
  Rewriter out(text, space, track);
  for (size_t at = 0; at < text.text.size();) {
    const CodePoint c = DecodeUtf8(text.text.data() + at);
    const size_t end = at + static_cast<size_t>(c.length);
    if (!IsUnicode9Mark(c.value)) out.Keep(at, end);
    at = end;
  }
  return out.Finish();
}

AlignedView Prepend(const NormalizerStep& step, const AlignedView& text, RewriteSpace& space, bool track) {
  if (text.text.empty()) return text;
  Rewriter out(text, space, track);
  out.Replace(0, 0, step.content);
  out.Keep(0, text.text.size());
  return out.Finish();
}

}  // namespace

AlignedView Normalize(const std::vector<NormalizerStep>& steps, AlignedView text, RewriteSpace& space, bool track) {
  using Kind = NormalizerStep::Kind;
  for (const NormalizerStep& step : steps) {
    switch (step.kind) {
      case Kind::kNfc:
        text = NormalizeUnicode(UnicodeForm::kNfc, text, space, track);
        break;
      case Kind::kNfd:
        text = NormalizeUnicode(UnicodeForm::kNfd, text, space, track);
        break;
      case Kind::kNfkc:
        text = NormalizeUnicode(UnicodeForm::kNfkc, text, space, track);
        break;
      case Kind::kNfkd:
        text = NormalizeUnicode(UnicodeForm::kNfkd, text, space, track);
        break;
      case Kind::kPrepend:
        text = Prepend(step, text, space, track);
        break;
      case Kind::kReplace:
        text = Replace(step, text, space, track);
        break;
      case Kind::kLowercase:
        text = Lowercase(text, space, track);
        break;
      case Kind::kStrip:
        text = Strip(step, text, CharClasses());
        break;
      case Kind::kStripAccents:
        text = StripAccents(text, space, track);
        break;
    }
  }
  return text;
}

}  // namespace thimble
