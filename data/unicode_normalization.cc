// Unicode normalisation forms with the data of Unicode 9: decompositions, combining classes and compositions are
// utf8proc's, newer characters are left out of all three.
#include "data/unicode_normalization.h"

#include <utf8proc.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "data/unicode.h"
#include "data/unicode_changes.h"

namespace thimble {
namespace {

constexpr uint8_t kInert = 16;  // newer than Unicode 9: nothing happens to it
constexpr uint8_t kMark = 32;   // general category M in Unicode 9
// Bit of a form: the character stays as it is and nothing before it ever changes it or passes it.
constexpr uint8_t StableBit(UnicodeForm form) { return static_cast<uint8_t>(1 << static_cast<int>(form)); }

bool IsCompatibility(UnicodeForm form) { return form == UnicodeForm::kNfkc || form == UnicodeForm::kNfkd; }
bool IsComposed(UnicodeForm form) { return form == UnicodeForm::kNfc || form == UnicodeForm::kNfkc; }

utf8proc_option_t Options(UnicodeForm form) {
  int options = UTF8PROC_STABLE | (IsComposed(form) ? UTF8PROC_COMPOSE : UTF8PROC_DECOMPOSE);
  if (IsCompatibility(form)) options |= UTF8PROC_COMPAT;
  return static_cast<utf8proc_option_t>(options);
}

void AppendDecomposition(char32_t c, UnicodeForm form, std::vector<utf8proc_int32_t>& out) {
  utf8proc_int32_t parts[32];  // the longest decomposition (U+FDFA) has 18
  int boundary = 0;
  const auto options = static_cast<utf8proc_option_t>((Options(form) & ~UTF8PROC_COMPOSE) | UTF8PROC_DECOMPOSE);
  const utf8proc_ssize_t count =
      utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts, 32, options, &boundary);
  if (count <= 0 || count > 32) {
    out.push_back(static_cast<utf8proc_int32_t>(c));
  } else {
    out.insert(out.end(), parts, parts + count);
  }
}

int CombiningClass(utf8proc_int32_t c) { return utf8proc_get_property(c)->combining_class; }

// Canonical order, then composition if the form asks for it.
void OrderAndCompose(UnicodeForm form, std::vector<utf8proc_int32_t>& chars) {
  for (auto at = chars.begin(); at != chars.end();) {
    if (CombiningClass(*at) == 0) {
      ++at;
      continue;
    }
    const auto end = std::find_if(at, chars.end(), [](utf8proc_int32_t c) { return CombiningClass(c) == 0; });
    std::stable_sort(at, end,
                     [](utf8proc_int32_t a, utf8proc_int32_t b) { return CombiningClass(a) < CombiningClass(b); });
    at = end;
  }
  if (!IsComposed(form)) return;
  const utf8proc_ssize_t count =
      utf8proc_normalize_utf32(chars.data(), static_cast<utf8proc_ssize_t>(chars.size()), Options(form));
  if (count >= 0) chars.resize(static_cast<size_t>(count));
}

void SetFlags(uint8_t* flags, char32_t first, char32_t last, uint8_t bits) {
  for (char32_t c = first; c <= last; ++c) flags[c] = bits;
}

std::unique_ptr<uint8_t[]> BuildFlags() {
  constexpr UnicodeForm kForms[] = {UnicodeForm::kNfc, UnicodeForm::kNfd, UnicodeForm::kNfkc, UnicodeForm::kNfkd};
  constexpr uint8_t kAll = StableBit(UnicodeForm::kNfc) | StableBit(UnicodeForm::kNfd) | StableBit(UnicodeForm::kNfkc) |
                           StableBit(UnicodeForm::kNfkd);
  auto flags = std::make_unique<uint8_t[]>(kMaxCodePoint + 1);
  std::vector<utf8proc_int32_t> parts;
  std::vector<char32_t> seconds;  // may be the second character of a composition
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    const utf8proc_property_t* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    const bool hangul = c >= 0xAC00 && c <= 0xD7A3;
    flags[c] = property->combining_class == 0 ? kAll : 0;
    if (property->combining_class != 0 || (property->decomp_seqindex == UINT16_MAX && !hangul)) continue;
    flags[c] = 0;
    for (const UnicodeForm form : kForms) {
      parts.clear();
      AppendDecomposition(c, form, parts);
      if (form == UnicodeForm::kNfd) seconds.insert(seconds.end(), parts.begin() + 1, parts.end());
      OrderAndCompose(form, parts);
      if (parts.size() == 1 && parts[0] == static_cast<utf8proc_int32_t>(c)) flags[c] |= StableBit(form);
    }
  }
  for (const char32_t c : seconds) {
    flags[c] &= static_cast<uint8_t>(~(StableBit(UnicodeForm::kNfc) | StableBit(UnicodeForm::kNfkc)));
  }
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    if ((CharClasses()[c] & kClassMark) != 0) flags[c] |= kMark;
  }
  for (const CodePointRange& range : MarksSinceUnicode9())
    SetFlags(flags.get(), range.first, range.last, kAll | kInert);
  for (const CodePointRange& range : DecompositionsSinceUnicode9()) {
    SetFlags(flags.get(), range.first, range.last, kAll | kInert);
  }
  for (const char32_t c : {0x1CF2, 0x1CF3}) flags[c] |= kMark;  // letters since Unicode 12
  return flags;
}

const uint8_t* Flags() {
  static const uint8_t* const flags = BuildFlags().release();
  return flags;
}

// Normalises a stretch that holds no stable character but perhaps its first.
void NormalizeStretch(UnicodeForm form, std::string_view stretch, std::vector<utf8proc_int32_t>& chars,
                      std::string& out) {
  chars.clear();
  out.clear();
  for (size_t at = 0; at < stretch.size();) {
    const CodePoint c = DecodeUtf8(stretch.data() + at);
    at += static_cast<size_t>(c.length);
    if ((Flags()[c.value] & kInert) != 0) {
      AppendUtf8(c.value, out);
    } else {
      AppendDecomposition(c.value, form, chars);
    }
  }
  OrderAndCompose(form, chars);
  for (const utf8proc_int32_t c : chars) AppendUtf8(static_cast<char32_t>(c), out);
}

// The first byte at or after `at` where a character without the bit begins, and the character before it.
struct Unstable {
  size_t previous;
  size_t at;
};
Unstable FindUnstable(std::string_view text, size_t at, uint8_t bit, const uint8_t* flags) {
  size_t previous = at;
  while (at < text.size()) {
    if (static_cast<unsigned char>(text[at]) < 0x80) {
      previous = at++;
      continue;
    }
    const CodePoint c = DecodeUtf8(text.data() + at);
    if ((flags[c.value] & bit) == 0) break;
    previous = at;
    at += static_cast<size_t>(c.length);
  }
  return {previous, at};
}

}  // namespace

AlignedView NormalizeUnicode(UnicodeForm form, const AlignedView& view, RewriteSpace& space, bool track) {
  const std::string_view text = view.text;
  const uint8_t* flags = Flags();
  const uint8_t bit = StableBit(form);
  Unstable unstable = FindUnstable(text, 0, bit, flags);
  if (unstable.at == text.size()) return view;
  Rewriter out(view, space, track);
  std::vector<utf8proc_int32_t> chars;
  std::string normal;
  size_t done = 0;
  while (unstable.at < text.size()) {
    out.Keep(done, unstable.previous);
    size_t end = unstable.at;
    while (end < text.size()) {
      const CodePoint c = DecodeUtf8(text.data() + end);
      if ((flags[c.value] & bit) != 0) break;
      end += static_cast<size_t>(c.length);
    }
    const std::string_view stretch = text.substr(unstable.previous, end - unstable.previous);
    NormalizeStretch(form, stretch, chars, normal);
    // Characters at either end that stay keep their own place.
    const size_t shorter = std::min(normal.size(), stretch.size());
    size_t same = 0;
    while (same < shorter && normal[same] == stretch[same]) ++same;
    while (same > 0 && same < stretch.size() && IsContinuationByte(stretch[same])) --same;
    if (same == stretch.size() && same < normal.size() && IsContinuationByte(normal[same])) same = 0;
    out.Keep(unstable.previous, unstable.previous + same);
    out.Replace(unstable.previous + same, end, std::string_view(normal).substr(same));
    done = end;
    unstable = FindUnstable(text, end, bit, flags);
  }
  out.Keep(done, text.size());
  return out.Finish();
}

bool IsUnicode9Mark(char32_t c) { return (Flags()[c] & kMark) != 0; }

}  // namespace thimble
