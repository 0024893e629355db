// DecodeRow against the definition of each format, at every start and length around block and row ends.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/cpu_level.h"
#include "ops/format.h"
#include "tests/ops/cpu_levels.h"

namespace thimble {
namespace {

uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// A random 4-bit weight with the storage its view points to.
struct Weight4Bit {
  Weight4Bit(Format format, int64_t rows, int64_t cols, int32_t block_size, bool nested) {
    std::mt19937 random(7);
    std::uniform_real_distribution<float> uniform(-1, 1);
    const int64_t count = rows * cols;
    const int64_t blocks = (count + block_size - 1) / block_size;
    codes.resize((count + 1) / 2);
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random());
    view.format = format;
    view.rows = rows;
    view.cols = cols;
    view.data = codes.data();
    view.block_size = block_size;
    if (nested) {
      absmax_codes.resize(blocks);
      for (uint8_t& code : absmax_codes) code = static_cast<uint8_t>(random());
      map.resize(256);
      for (float& value : map) value = uniform(random);
      nested_absmax.resize((blocks + 255) / 256);
      for (float& value : nested_absmax) value = uniform(random);
      view.absmax_codes = absmax_codes.data();
      view.absmax_map = map.data();
      view.nested_absmax = nested_absmax.data();
      view.nested_offset = 0.3f;
    } else {
      absmax.resize(blocks);
      for (float& value : absmax) value = uniform(random);
      view.absmax = absmax.data();
    }
  }
  // Element `index` of the flattened weight by the definition.
  float At(int64_t index) const {
    const int64_t block = index / view.block_size;
    float scale;
    if (absmax.empty()) {
      const float product = map[absmax_codes[block]] * nested_absmax[block / 256];
      scale = product + view.nested_offset;
    } else {
      scale = absmax[block];
    }
    const int code = index % 2 == 0 ? codes[index / 2] / 16 : codes[index / 2] % 16;
    return Codebook(view.format)[code] * scale;
  }
  std::vector<uint8_t> codes, absmax_codes;
  std::vector<float> absmax, map, nested_absmax;
  WeightView view;
};

TEST(DecodeRowTest, FourBitMatchesDefinitionAtAnyStart) {
  for (Format format : {Format::kNF4, Format::kFP4}) {
    for (bool nested : {false, true}) {
      for (int32_t block_size : {32, 64, 4096}) {
        const Weight4Bit w(format, 5, 131, block_size, nested);
        for (int64_t row = 0; row < 5; ++row) {
          for (int64_t col = 0; col < 131; ++col) {
            for (int64_t count : {int64_t{0}, int64_t{1}, int64_t{9}, int64_t{67}, 131 - col}) {
              if (count > 131 - col) continue;
              std::vector<float> fast(count + 1, -77.0f), plain(count + 1, -77.0f);
              DecodeRow(w.view, row, col, count, fast.data());
              DecodeRowPortable(w.view, row, col, count, plain.data());
              for (int64_t i = 0; i < count; ++i) {
                ASSERT_EQ(Bits(fast[i]), Bits(w.At(row * 131 + col + i))) << row << " " << col << " " << i;
              }
              ASSERT_EQ(std::memcmp(fast.data(), plain.data(), (count + 1) * sizeof(float)), 0);
              ASSERT_EQ(fast[count], -77.0f);
            }
          }
        }
      }
    }
  }
}

TEST(DecodeRowTest, NestedStatisticsBeyondTheFirst256Blocks) {
  const Weight4Bit w(Format::kNF4, 300, 96, 32, true);
  std::vector<float> row(96);
  for (int64_t r = 0; r < 300; ++r) {
    DecodeRow(w.view, r, 0, 96, row.data());
    for (int64_t c = 0; c < 96; ++c) ASSERT_EQ(Bits(row[c]), Bits(w.At(r * 96 + c)));
  }
}

// The processor's own conversion quiets a signalling NaN and plain C++ keeps it, which tells one from the other.
TEST(DecodeRowTest, FollowsTheCpuLevel) {
  const std::vector<uint16_t> signalling(16, 0x7D01);
  WeightView w;
  w.format = Format::kF16;
  w.rows = 1;
  w.cols = 16;
  w.data = signalling.data();
  ForEachCpuLevel([&](const std::string& level) {
    std::vector<float> values(16), plain(16);
    DecodeRow(w, 0, 0, 16, values.data());
    DecodeRowPortable(w, 0, 0, 16, plain.data());
    EXPECT_EQ(Bits(values[0]) == Bits(plain[0]), ActiveCpuLevel() == CpuLevel::kGeneric) << level;
  });
}

TEST(DecodeRowTest, SixteenBitTypesMatchScalarConversion) {
  std::vector<uint16_t> bits(65536);
  for (int i = 0; i < 65536; ++i) bits[i] = static_cast<uint16_t>(i);
  for (Format format : {Format::kBF16, Format::kF16}) {
    WeightView w;
    w.format = format;
    w.rows = 1;
    w.cols = 65536;
    w.data = bits.data();
    std::vector<float> fast(65536), plain(65536);
    DecodeRow(w, 0, 0, 3, fast.data());
    DecodeRow(w, 0, 3, 65533, fast.data() + 3);
    DecodeRowPortable(w, 0, 0, 65536, plain.data());
    for (int i = 0; i < 65536; ++i) {
      const float expected = format == Format::kBF16 ? BF16ToFloat(bits[i]) : F16ToFloat(bits[i]);
      ASSERT_EQ(Bits(plain[i]), Bits(expected));
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(fast[i]));
      } else {
        ASSERT_EQ(Bits(fast[i]), Bits(expected)) << i;
      }
    }
  }
}

}  // namespace
}  // namespace thimble
