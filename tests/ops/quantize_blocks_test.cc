// QuantizeBlocks and DecodeRow in ggml's block formats against what ggml's reference functions make of seven million
// values (tests/golden/quantize_blocks/make.py), and the whole weight path over such a weight.
#include "ops/quantize_blocks.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/decode_blocks.h"
#include "ops/parallel.h"
#include "tests/ops/crc32.h"
#include "tests/ops/golden_values.h"

namespace thimble {
namespace {

constexpr int64_t kCount = 256 * 4101;
constexpr int64_t kBlocks = 4099;

std::vector<Format> BlockFormats() {
  std::vector<Format> formats;
  for (int f = 0; f < kFormats; ++f) {
    if (IsBlockFormat(static_cast<Format>(f))) formats.push_back(static_cast<Format>(f));
  }
  return formats;
}

Format FormatNamed(const std::string& name) {
  for (Format format : BlockFormats()) {
    if (InfoOf(format).name == name) return format;
  }
  ADD_FAILURE() << name;
  return Format::kQ8_0;
}

std::vector<float> Values(int kind) { return GoldenValues(kind, kCount); }

// Half-precision scales of a block, by offset.
std::vector<int> HalfScales(Format format) {
  switch (format) {
    case Format::kQ4_1:
    case Format::kQ5_1:
    case Format::kQ4K:
    case Format::kQ5K:
      return {0, 2};
    case Format::kQ6K:
      return {208};
    case Format::kTQ1_0:
      return {52};
    case Format::kTQ2_0:
      return {64};
    case Format::kMXFP4:
    case Format::kNVFP4:
      return {};
    default:
      return {0};
  }
}

std::vector<uint8_t> AnyBlocks(Format format) {
  const int64_t size = InfoOf(format).bytes_per_block;
  std::vector<uint8_t> bytes(kBlocks * size);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(GoldenMix(static_cast<uint32_t>(i)) >> 7);
  for (int64_t b = 0; b < kBlocks; ++b) {
    for (int at : HalfScales(format)) bytes[b * size + at + 1] &= 0xbf;
  }
  return bytes;
}

std::vector<float> Decoded(Format format, const std::vector<uint8_t>& blocks) {
  const FormatInfo& info = InfoOf(format);
  const int64_t count = static_cast<int64_t>(blocks.size()) / info.bytes_per_block;
  std::vector<float> fast(count * info.values_per_block), plain(fast.size());
  DecodeBlocks(format, blocks.data(), count, fast.data());
  DecodeBlocksPortable(format, blocks.data(), count, plain.data());
  EXPECT_EQ(std::memcmp(fast.data(), plain.data(), fast.size() * sizeof(float)), 0) << info.name;
  return fast;
}

std::vector<uint8_t> Encoded(Format format, const std::vector<float>& values) {
  std::vector<uint8_t> blocks(StoredBytes(format, static_cast<int64_t>(values.size())));
  EXPECT_EQ(QuantizeBlocks(format, {values.data(), static_cast<int64_t>(values.size())}, blocks.data()), -1);
  return blocks;
}

TEST(SlowQuantizeBlocksTest, EqualsGgmlOnMillionsOfValues) {
  std::ifstream file(std::string(THIMBLE_SOURCE_DIR) + "/tests/golden/quantize_blocks/expected.txt");
  ASSERT_TRUE(file.good());
  int lines = 0, last_kind = -1;
  std::vector<float> values;
  for (std::string line; std::getline(file, line); ++lines) {
    SCOPED_TRACE(line);
    std::istringstream words(line);
    std::string what, name;
    uint32_t input, encoded, decoded;
    words >> what;
    if (what == "decode") {
      words >> name >> std::hex >> input >> decoded;
      const std::vector<uint8_t> blocks = AnyBlocks(FormatNamed(name));
      EXPECT_EQ(Crc32(blocks), input);
      EXPECT_EQ(Crc32(Decoded(FormatNamed(name), blocks)), decoded);
      continue;
    }
    int kind;
    words >> kind >> name >> std::hex >> input >> encoded >> decoded;
    if (kind != last_kind) {
      values = Values(kind);
      ASSERT_EQ(Crc32(values), input);
      last_kind = kind;
    }
    const std::vector<uint8_t> blocks = Encoded(FormatNamed(name), values);
    EXPECT_EQ(Crc32(blocks), encoded);
    EXPECT_EQ(Crc32(Decoded(FormatNamed(name), blocks)), decoded);
  }
  EXPECT_EQ(lines, 8 * static_cast<int>(BlockFormats().size()) - 1);
}

// A short vector with known checksums.
TEST(QuantizeBlocksTest, KnownVectors) {
  struct Case {
    Format format;
    uint32_t encoded, decoded;
  };
  for (const Case& c : {Case{Format::kQ4_0, 0x52e6d2a2, 0xecb37448},
                        {Format::kQ4_1, 0x5dfc9b25, 0x4dcec4f7},
                        {Format::kQ5_0, 0x11953fda, 0xbd62dfcc},
                        {Format::kQ5_1, 0x3789046c, 0xe94f830c},
                        {Format::kQ8_0, 0xe6723bc0, 0xe2e5bace},
                        {Format::kQ4K, 0x2bcf1e34, 0x0929e7f9},
                        {Format::kQ5K, 0x7db04d04, 0x2d639f8f},
                        {Format::kQ6K, 0x4b84d3c7, 0xcec19162},
                        {Format::kTQ1_0, 0x77fe6dae, 0xe57e59aa},
                        {Format::kTQ2_0, 0xe1cebb9f, 0xe57e59aa},
                        {Format::kMXFP4, 0x84da516c, 0xd145bff8},
                        {Format::kNVFP4, 0x1afce447, 0xf07da8a5}}) {
    std::vector<float> values(512);
    for (int i = 0; i < 512; ++i) {
      float x = static_cast<float>((i * 40503 + 12345) % 65536 - 32768) / 32768;
      if (c.format == Format::kTQ1_0 || c.format == Format::kTQ2_0) {
        x = x > 1.0f / 3 ? 0.75f : x < -1.0f / 3 ? -0.75f : 0;
      }
      values[i] = x;
    }
    const std::vector<uint8_t> blocks = Encoded(c.format, values);
    EXPECT_EQ(Crc32(blocks), c.encoded) << InfoOf(c.format).name;
    EXPECT_EQ(Crc32(Decoded(c.format, blocks)), c.decoded) << InfoOf(c.format).name;
  }
}

// Where the scale would be below 2^-127 it is 2^-127, whose smallest code is 2^-128.
TEST(QuantizeBlocksTest, TinyValuesTakeTheSmallestMXFP4Scale) {
  std::vector<float> values(32, 0.0f);
  values[3] = 0x1p-127f;
  values[4] = -0x1p-126f;
  values[5] = 0x1p-140f;
  const std::vector<uint8_t> blocks = Encoded(Format::kMXFP4, values);
  EXPECT_EQ(blocks[0], 0);
  values[5] = 0;
  EXPECT_EQ(Decoded(Format::kMXFP4, blocks), values);
}

TEST(QuantizeBlocksTest, NamesTheFirstBlockThatIsNotFinite) {
  std::vector<float> values(256 * 64, 0.5f);
  std::vector<uint8_t> blocks(values.size() * 2);
  for (Format format : BlockFormats()) {
    const int64_t size = InfoOf(format).values_per_block;
    std::vector<float> bad = values;
    bad[size * 5 + 3] = std::numeric_limits<float>::quiet_NaN();
    bad[size * 40] = std::numeric_limits<float>::infinity();
    EXPECT_EQ(QuantizeBlocks(format, {bad.data(), static_cast<int64_t>(bad.size())}, blocks.data()), 5);
  }
}

// Any range of a row, also from within one block into another row's.
TEST(QuantizeBlocksTest, DecodeRowStartsAndEndsAnywhere) {
  const int64_t rows = 3, cols = 768;
  std::vector<float> values = Values(0);
  values.resize(rows * cols);
  for (Format format : BlockFormats()) {
    const std::vector<uint8_t> blocks = Encoded(format, values);
    const std::vector<float> all = Decoded(format, blocks);
    WeightView w;
    w.format = format;
    w.rows = rows;
    w.cols = cols;
    w.data = blocks.data();
    for (int64_t begin : {0, 1, 31, 32, 255, 256, 700, 767, 768, 1100}) {
      for (int64_t count : {0, 1, 5, 32, 255, 256, 300, 600}) {
        std::vector<float> out(count + 1, 7.0f);
        DecodeRow(w, begin / cols, begin % cols, count, out.data());
        EXPECT_EQ(std::memcmp(out.data(), all.data() + begin, count * sizeof(float)), 0)
            << InfoOf(format).name << " " << begin << " " << count;
        EXPECT_EQ(out[count], 7.0f);
      }
    }
  }
}

}  // namespace
}  // namespace thimble
