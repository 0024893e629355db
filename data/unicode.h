// UTF-8 and the Unicode 16 character classes that tokenizers ask for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "absl/types/span.h"

namespace thimble {

// Bits of CharClasses.
inline constexpr uint8_t kClassLetter = 1;    // \p{L}
inline constexpr uint8_t kClassNumber = 2;    // \p{N}: Nd, Nl, No
inline constexpr uint8_t kClassSpace = 4;     // \s: White_Space
inline constexpr uint8_t kClassMark = 8;      // \p{M}
inline constexpr uint8_t kClassWord = 16;     // \w: Alphabetic, \p{M}, Nd, Pc, U+200C, U+200D
inline constexpr uint8_t kClassNewer = 32;    // general category differs between Unicode 14 and 16
inline constexpr uint8_t kClassNumeric = 64;  // Rust's char::is_numeric: \p{N} of Unicode 17
inline constexpr char32_t kMaxCodePoint = 0x10FFFF;

// Classes of every code point, kMaxCodePoint + 1 bytes; built on the first call.
const uint8_t* CharClasses();

// The code point at `at`, which must begin a sequence of valid UTF-8, and its length in bytes.
struct CodePoint {
  char32_t value;
  int length;
};
inline CodePoint DecodeUtf8(const char* at) {
  const auto byte = [at](int i) { return static_cast<char32_t>(static_cast<unsigned char>(at[i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}
inline bool IsContinuationByte(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }
void AppendUtf8(char32_t c, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";  // U+FFFD

// The part of `text` up to the first bad sequence, and the length of that sequence: the longest prefix of a valid
// sequence, or one byte (Unicode 16, section 3.9, "maximal subpart"). `incomplete`: the text ends inside it.
struct Utf8Prefix {
  size_t valid;
  size_t bad;
  bool incomplete;
};
Utf8Prefix ValidUtf8Prefix(std::string_view text);

// Each bad sequence replaced by U+FFFD.
std::string ReplaceInvalidUtf8(std::string_view text);

// char::to_lowercase of one code point (U+0130 gives two), appended as UTF-8.
void AppendLowercase(char32_t c, std::string& out);

// A copy of `text` for a matcher that knows Unicode 14: characters whose category has changed since then become others
// of the same category and the same length in UTF-8. Returns false and leaves `out` alone when there is none.
bool SubstituteNewerCharacters(std::string_view text, std::string& out);

}  // namespace thimble
