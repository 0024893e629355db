// UTF-8 and the Unicode 16 character classes that tokenizers ask for: utf8proc's, brought up to date.
#include "data/unicode.h"

#include <utf8proc.h>

#include <memory>

#include "data/unicode_changes.h"

namespace thimble {
namespace {

uint8_t ClassesOfCategory(utf8proc_category_t category) {
  switch (category) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
      return kClassLetter | kClassWord;
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
      return kClassMark | kClassWord;
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
      return kClassNumber | kClassWord;
    case UTF8PROC_CATEGORY_NO:
      return kClassNumber;
    case UTF8PROC_CATEGORY_PC:
      return kClassWord;
    default:
      return 0;
  }
}

void SetBits(uint8_t* classes, char32_t first, char32_t last, uint8_t bits) {
  for (char32_t c = first; c <= last; ++c) classes[c] |= bits;
}

std::unique_ptr<uint8_t[]> BuildCharClasses() {
  auto classes = std::make_unique<uint8_t[]>(kMaxCodePoint + 1);
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    classes[c] = ClassesOfCategory(utf8proc_category(static_cast<utf8proc_int32_t>(c)));
  }
  for (const CategoryChange& change : CategoryChanges()) {
    for (char32_t c = change.first; c <= change.last; ++c) {
      classes[c] = static_cast<uint8_t>(ClassesOfCategory(change.category) | kClassNewer);
    }
  }
  constexpr char32_t kSpaces[][2] = {{0x9, 0xD},       {0x20, 0x20},     {0x85, 0x85},     {0xA0, 0xA0},
                                     {0x1680, 0x1680}, {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F},
                                     {0x205F, 0x205F}, {0x3000, 0x3000}};
  for (const auto& range : kSpaces) SetBits(classes.get(), range[0], range[1], kClassSpace);
  // Other_Alphabetic outside letters and marks (circled and squared letters), and the two joiners.
  constexpr char32_t kWords[][2] = {
      {0x24B6, 0x24E9}, {0x1F130, 0x1F149}, {0x1F150, 0x1F169}, {0x1F170, 0x1F189}, {0x200C, 0x200D}};
  for (const auto& range : kWords) SetBits(classes.get(), range[0], range[1], kClassWord);
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    if ((classes[c] & kClassNumber) != 0) classes[c] |= kClassNumeric;
  }
  SetBits(classes.get(), 0x11DE0, 0x11DE9, kClassNumeric);
  SetBits(classes.get(), 0x16FF4, 0x16FF6, kClassNumeric);
  return classes;
}

}  // namespace

const uint8_t* CharClasses() {
  static const uint8_t* const classes = BuildCharClasses().release();
  return classes;
}

void AppendUtf8(char32_t c, std::string& out) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(static_cast<unsigned char>(byte))); };
  if (c < 0x80) {
    put(c);
  } else if (c < 0x800) {
    put(0xC0 | c >> 6);
    put(0x80 | (c & 0x3F));
  } else if (c < 0x10000) {
    put(0xE0 | c >> 12);
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  } else {
    put(0xF0 | c >> 18);
    put(0x80 | (c >> 12 & 0x3F));
    put(0x80 | (c >> 6 & 0x3F));
    put(0x80 | (c & 0x3F));
  }
}

Utf8Prefix ValidUtf8Prefix(std::string_view text) {
  const auto byte = [&text](size_t i) { return static_cast<unsigned char>(text[i]); };
  size_t i = 0;
  while (i < text.size()) {
    const unsigned char lead = byte(i);
    if (lead < 0x80) {
      ++i;
      continue;
    }
    // The second byte's range keeps out overlong forms, surrogates and code points past U+10FFFF.
    size_t length = 0;
    unsigned char low = 0x80, high = 0xBF;
    if (lead >= 0xC2 && lead <= 0xDF) {
      length = 2;
    } else if (lead >= 0xE0 && lead <= 0xEF) {
      length = 3;
      if (lead == 0xE0) low = 0xA0;
      if (lead == 0xED) high = 0x9F;
    } else if (lead >= 0xF0 && lead <= 0xF4) {
      length = 4;
      if (lead == 0xF0) low = 0x90;
      if (lead == 0xF4) high = 0x8F;
    } else {
      return {i, 1, false};
    }
    size_t good = 1;
    while (good < length && i + good < text.size() && byte(i + good) >= low && byte(i + good) <= high) {
      low = 0x80;
      high = 0xBF;
      ++good;
    }
    if (good < length) return {i, good, i + good == text.size()};
    i += length;
  }
  return {i, 0, false};
}

std::string ReplaceInvalidUtf8(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  while (true) {
    const Utf8Prefix prefix = ValidUtf8Prefix(text);
    out.append(text.substr(0, prefix.valid));
    if (prefix.bad == 0) return out;
    out.append(kReplacementCharacter);
    text.remove_prefix(prefix.valid + prefix.bad);
  }
}

void AppendLowercase(char32_t c, std::string& out) {
  if (c == 0x130) {
    out.append("i\xCC\x87");
    return;
  }
  for (const LowercaseChange& change : LowercaseChanges()) {
    if (c >= change.first && c <= change.last) {
      AppendUtf8(static_cast<char32_t>(static_cast<int32_t>(c) + change.distance), out);
      return;
    }
  }
  AppendUtf8(static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))), out);
}

bool SubstituteNewerCharacters(std::string_view text, std::string& out) {
  const uint8_t* classes = CharClasses();
  bool found = false;
  for (size_t i = 0; i < text.size();) {
    if (static_cast<unsigned char>(text[i]) < 0xE0) {  // none has a sequence of one or two bytes
      ++i;
      continue;
    }
    const CodePoint c = DecodeUtf8(text.data() + i);
    if ((classes[c.value] & kClassNewer) != 0 || c.value == 0x180E) {
      if (!found) out.assign(text);
      found = true;
      std::string stand_in;
      AppendUtf8(StandIn(c.value), stand_in);
      out.replace(i, stand_in.size(), stand_in);
    }
    i += static_cast<size_t>(c.length);
  }
  return found;
}

}  // namespace thimble
