// The hand-written scanners against the regular expressions they stand for.
#include "data/split_pattern.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "data/unicode.h"

namespace thimble {
namespace {

// Every kind of character the patterns tell apart, and code points from all over.
std::string RandomText(std::mt19937& rng) {
  static const std::vector<std::string> pieces = {
      "a",    "Zq",     "'",      "'s",     "'RE", "'\u017f", "'l",     "'ll", " ", "  ",     "\t",     "\n", "\r",
      "\r\n", "\u00a0", "\u3000", "\u180e", "7",   "42",      "\u00bd", ".",   "-", "\u0301", "\u4e2d", "_"};
  std::string text;
  const size_t count = rng() % 24;
  for (size_t i = 0; i < count; ++i) {
    if (rng() % 5 > 0) {
      text += pieces[rng() % pieces.size()];
      continue;
    }
    const char32_t c = static_cast<char32_t>(rng() % (rng() % 2 ? 0x110000 : 0x20000));
    if (c < 0xD800 || c > 0xDFFF) AppendUtf8(c, text);
  }
  return text;
}

void ExpectScannerAgrees(SplitScanner scanner, std::string_view pattern) {
  const auto regex = Regex::Compile(pattern);
  ASSERT_TRUE(regex.ok()) << regex.status();
  ASSERT_EQ(ScannerFor(pattern), scanner);
  std::mt19937 rng(7);
  std::vector<ByteSpan> scanned, matched;
  for (int i = 0; i < 20000; ++i) {
    const std::string text = RandomText(rng);
    ScanAll(scanner, text, scanned);
    regex->FindAll(text, matched);
    ASSERT_EQ(scanned, matched) << text;
  }
}

TEST(SplitPatternTest, Gpt2ScannerAgrees) { ExpectScannerAgrees(SplitScanner::kGpt2, kGpt2Pattern); }
TEST(SplitPatternTest, Llama3ScannerAgrees) { ExpectScannerAgrees(SplitScanner::kLlama3, kLlama3Pattern); }
TEST(SplitPatternTest, Qwen2ScannerAgrees) { ExpectScannerAgrees(SplitScanner::kQwen2, kQwen2Pattern); }

TEST(SplitPatternTest, ClassesAreThoseOfUnicode16) {
  std::string text;
  std::vector<std::pair<size_t, uint8_t>> characters;  // where each stands, and its classes
  for (char32_t c = 0; c <= kMaxCodePoint; ++c) {
    if (c >= 0xD800 && c <= 0xDFFF) continue;
    characters.emplace_back(text.size(), CharClasses()[c]);
    AppendUtf8(c, text);
  }
  const std::pair<const char*, uint8_t> classes[] = {
      {"\\p{L}", kClassLetter}, {"\\p{N}", kClassNumber}, {"\\p{M}", kClassMark}, {"\\s", kClassSpace}};
  for (const auto& [pattern, bit] : classes) {
    const auto regex = Regex::Compile(pattern);
    ASSERT_TRUE(regex.ok()) << regex.status();
    std::vector<ByteSpan> matches;
    regex->FindAll(text, matches);
    size_t next = 0;
    for (const auto& [at, bits] : characters) {
      const bool matched = next < matches.size() && matches[next].begin == at;
      next += matched;
      ASSERT_EQ(matched, (bits & bit) != 0)
          << pattern << " U+" << std::hex << static_cast<uint32_t>(DecodeUtf8(text.data() + at).value);
    }
    EXPECT_EQ(next, matches.size());
  }
}

}  // namespace
}  // namespace thimble
