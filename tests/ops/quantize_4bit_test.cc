// Quantize4Bit, QuantizeAbsmax and DecodeRow against what bitsandbytes makes of ten million values
// (tests/golden/quantize_4bit/make.py), and the streaming quantiser against the one-call one.
#include "ops/quantize_4bit.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/dynamic_map.h"
#include "ops/parallel.h"
#include "tests/ops/crc32.h"

namespace thimble {
namespace {

constexpr int64_t kCount = 1500037;
constexpr int kKinds = 7;

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352d;
  x ^= x >> 15;
  x *= 0x846ca68b;
  return x ^ (x >> 16);
}

float Bell(uint32_t h) {
  const int32_t total = static_cast<int32_t>((h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24));
  return static_cast<float>(total - 510) * 0x1p-13f;
}

// Midpoints of neighbouring values, those of nf4 then those of fp4.
std::vector<uint32_t> Thresholds() {
  std::vector<uint32_t> bits;
  for (Format format : {Format::kNF4, Format::kFP4}) {
    std::vector<float> sorted(Codebook(format), Codebook(format) + 16);
    std::sort(sorted.begin(), sorted.end());
    for (int i = 0; i < 15; ++i) bits.push_back(Bits((sorted[i] + sorted[i + 1]) / 2));
  }
  return bits;
}

// The input of make.py, by the same integer formula.
std::vector<float> Values(int kind) {
  static const std::vector<uint32_t> thresholds = Thresholds();
  std::vector<float> values(kCount);
  for (int64_t k = 0; k < kCount; ++k) {
    const uint32_t i = static_cast<uint32_t>(k);
    const uint32_t h = Mix(i + static_cast<uint32_t>(kind) * 0x9e3779b1u);
    float& value = values[k];
    switch (kind) {
      case 0:
        value = Bell(h);
        break;
      case 1:
        value = FromBits((h & 0x7f800000) == 0x7f800000 ? h ^ 0x40000000 : h);
        break;
      case 2:
        value = Mix(i >> 6) % 4 == 0 ? FromBits(h & 0x80000000) : Bell(h);
        break;
      case 3: {
        uint32_t bits = thresholds[h % 30] + (h >> 8) % 3 - 1;
        if (i % 32 == 5) bits = 0x3f800000;
        if (bits == 0xffffffff) bits = 0;
        value = FromBits(bits) * std::ldexp(1.0f, static_cast<int>((i >> 12) % 60) - 30);
        break;
      }
      case 4:
        value = FromBits((h & 0x80000000) | (h & 0xffffff) >> (Mix(i >> 6) % 24));
        break;
      case 5:
        value = FromBits(Bits(Bell(h)) & 0xffff0000);
        break;
      default:
        value = static_cast<float>(static_cast<int32_t>(h)) * 0x1p-40f;
    }
  }
  return values;
}

struct Expected {
  int kind;
  std::string format;
  int block_size;
  uint32_t input, codes, absmax, decoded, offset, nested_codes, nested_absmax, decoded_nested;
  int torch_mean;
};

std::vector<Expected> ReadExpected() {
  std::ifstream file(THIMBLE_SOURCE_DIR "/tests/golden/quantize_4bit/expected.txt");
  std::vector<Expected> rows;
  Expected row;
  while (file >> std::dec >> row.kind >> row.format >> row.block_size >> std::hex >> row.input >> row.codes >>
         row.absmax >> row.decoded >> row.offset >> row.nested_codes >> row.nested_absmax >> row.decoded_nested >>
         row.torch_mean) {
    rows.push_back(row);
  }
  return rows;
}

std::vector<float> DecodeAll(const WeightView& view) {
  std::vector<float> values(view.rows * view.cols);
  DecodeRow(view, 0, 0, static_cast<int64_t>(values.size()), values.data());
  return values;
}

class GoldenTest : public testing::TestWithParam<int> {};

TEST_P(GoldenTest, BitsOfBitsandbytes) {
  const std::vector<float> values = Values(GetParam());
  const uint32_t input = Crc32(values);
  int checked = 0;
  for (const Expected& row : ReadExpected()) {
    if (row.kind != GetParam()) continue;
    SCOPED_TRACE(row.format + " block " + std::to_string(row.block_size));
    ASSERT_EQ(input, row.input);
    const Format format = row.format == "nf4" ? Format::kNF4 : Format::kFP4;
    const int64_t blocks = (kCount + row.block_size - 1) / row.block_size;
    QuantizedWeight w;
    w.format = format;
    w.rows = 1;
    w.cols = kCount;
    w.block_size = row.block_size;
    w.codes.resize((kCount + 1) / 2);
    w.absmax.resize(blocks);
    ASSERT_EQ(Quantize4Bit(format, {values.data(), kCount}, row.block_size, w.codes.data(), {w.absmax.data(), blocks}),
              -1);
    EXPECT_EQ(Crc32(w.codes), row.codes);
    EXPECT_EQ(Crc32(w.absmax), row.absmax);
    const bool decode = row.block_size == 64 || row.block_size == 4096;
    if (decode) {
      EXPECT_EQ(Crc32(DecodeAll(w.View())), row.decoded);
    }

    WeightQuantizer quantizer(format, 1, kCount, row.block_size, true);
    quantizer.Push({values.data(), kCount});
    const QuantizedWeight nested = quantizer.Finish();
    EXPECT_EQ(nested.codes, w.codes);
    EXPECT_EQ(Bits(nested.nested_offset), row.offset);
    EXPECT_EQ(Crc32(nested.absmax_codes), row.nested_codes);
    EXPECT_EQ(Crc32(nested.nested_absmax), row.nested_absmax);
    if (decode) {
      EXPECT_EQ(Crc32(DecodeAll(nested.View())), row.decoded_nested);
    }
    ++checked;
  }
  EXPECT_EQ(checked, 16);
}

INSTANTIATE_TEST_SUITE_P(SlowQuantize4Bit, GoldenTest, testing::Range(0, kKinds));

TEST(Quantize4BitTest, DynamicMapsHaveTheKnownChecksums) {
  EXPECT_EQ(Crc32(std::vector<float>(SignedDynamicMap(), SignedDynamicMap() + 256)), 0x1b137aebu);
  EXPECT_EQ(Crc32(std::vector<float>(UnsignedDynamicMap(), UnsignedDynamicMap() + 256)), 0xe871278fu);
}

TEST(Quantize4BitTest, PortableAndThreadsGiveTheSameBits) {
  std::vector<float> values = Values(3);
  values.resize(300001);
  const int64_t count = static_cast<int64_t>(values.size());
  const int threads = NumThreads();
  for (Format format : {Format::kNF4, Format::kFP4}) {
    const int64_t blocks = (count + 63) / 64;
    std::vector<uint8_t> fast((count + 1) / 2), plain(fast), single(fast);
    std::vector<float> fast_absmax(blocks), plain_absmax(blocks), single_absmax(blocks);
    SetNumThreads(2);
    Quantize4Bit(format, {values.data(), count}, 64, fast.data(), {fast_absmax.data(), blocks});
    Quantize4BitPortable(format, {values.data(), count}, 64, plain.data(), {plain_absmax.data(), blocks});
    SetNumThreads(1);
    Quantize4Bit(format, {values.data(), count}, 64, single.data(), {single_absmax.data(), blocks});
    EXPECT_EQ(fast, plain);
    EXPECT_EQ(fast, single);
    EXPECT_EQ(fast_absmax, plain_absmax);
    EXPECT_EQ(fast_absmax, single_absmax);
  }
  SetNumThreads(threads);
}

TEST(Quantize4BitTest, PiecesGiveTheBitsOfOneCall) {
  std::vector<float> values = Values(6);
  for (int64_t count : {0, 1, 31, 64, 1000, 7001}) {
    for (bool double_quant : {false, true}) {
      WeightQuantizer whole(Format::kNF4, 1, count, 64, double_quant);
      whole.Push({values.data(), count});
      const QuantizedWeight expected = whole.Finish();
      for (int64_t piece : {1, 63, 64, 129}) {
        WeightQuantizer quantizer(Format::kNF4, 1, count, 64, double_quant);
        for (int64_t i = 0; i < count; i += piece) {
          quantizer.Push({values.data() + i, std::min(piece, count - i)});
        }
        ASSERT_TRUE(quantizer.finite());
        const QuantizedWeight result = quantizer.Finish();
        EXPECT_EQ(result.codes, expected.codes);
        EXPECT_EQ(result.absmax, expected.absmax);
        EXPECT_EQ(result.absmax_codes, expected.absmax_codes);
        EXPECT_EQ(result.nested_absmax, expected.nested_absmax);
        EXPECT_EQ(Bits(result.nested_offset), Bits(expected.nested_offset));
      }
    }
  }
}

TEST(Quantize4BitTest, FindsNaNAndInfinityWhereverTheyStand) {
  for (float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN(),
                    std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
    for (int64_t at = 0; at < 200; ++at) {
      std::vector<float> values(200, 0.5f), absmax(4);
      std::vector<uint8_t> codes(100);
      values[at] = bad;
      EXPECT_EQ(Quantize4Bit(Format::kNF4, {values.data(), 200}, 64, codes.data(), {absmax.data(), 4}), at / 64);
      WeightQuantizer quantizer(Format::kFP4, 2, 100, 64, true);
      quantizer.Push({values.data(), 150});
      quantizer.Push({values.data() + 150, 50});
      EXPECT_FALSE(quantizer.finite());
    }
  }
}

TEST(Quantize4BitTest, EqualBlocksKeepTheirAbsmaxWhenNested) {
  // Every absmax equals the mean: the differences are zero, so the offset alone rebuilds them.
  WeightQuantizer quantizer(Format::kNF4, 10, 64, 64, true);
  const std::vector<float> values(640, -0.25f);
  quantizer.Push({values.data(), 640});
  const QuantizedWeight w = quantizer.Finish();
  EXPECT_EQ(w.nested_offset, 0.25f);
  EXPECT_EQ(w.nested_absmax, std::vector<float>{0.0f});
  EXPECT_EQ(DecodeAll(w.View()), values);
}

}  // namespace
}  // namespace thimble
