// Codes with scales against what torchao and PyTorch make of seven million values
// (tests/golden/quantize_scaled/make.py).
#include "ops/quantize_scaled.h"

#include <cmath>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/matmul.h"
#include "ops/scratch_buffer.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/crc32.h"
#include "tests/ops/golden_values.h"

namespace thimble {
namespace {

constexpr int64_t kRows = 1367, kCols = 768;

QuantizedWeight Quantized(const ScaledScheme& scheme, const std::vector<float>& values, int64_t rows, int64_t cols) {
  QuantizedWeight w = MakeScaledWeight(scheme.format, rows, cols, GroupOf(scheme.format, scheme.group, cols));
  if (scheme.format == Format::kE2M1) {
    float amax = 0;
    for (float value : values) amax = std::max(amax, std::fabs(value));
    SetTensorScale(amax, &w);
  }
  EXPECT_TRUE(QuantizeScaledRows({values.data(), static_cast<int64_t>(values.size())}, 0, &w));
  return w;
}

// A byte each: of int4 the value, of the others the code.
std::vector<uint8_t> Codes(const QuantizedWeight& w) {
  if (!HasNibbles(w.format)) return w.codes;
  std::vector<uint8_t> codes(w.codes.size() * 2);
  for (size_t i = 0; i < codes.size(); ++i) {
    const int code = w.codes[i / 2] >> (i % 2 == 0 ? 4 : 0) & 15;
    codes[i] = static_cast<uint8_t>(w.format == Format::kInt4 ? code - 8 : code);
  }
  return codes;
}

std::vector<float> Decoded(const QuantizedWeight& w) {
  const int64_t count = w.rows * w.cols;
  std::vector<float> fast(count), plain(count);
  DecodeRow(w.View(), 0, 0, count, fast.data());
  DecodeRowPortable(w.View(), 0, 0, count, plain.data());
  EXPECT_EQ(std::memcmp(fast.data(), plain.data(), count * sizeof(float)), 0) << InfoOf(w.format).name;
  return fast;
}

// What make.py converts.
std::vector<float> CastPatterns() {
  std::vector<float> values;
  for (uint64_t i = 0; i < 65552; ++i) {
    const auto bits = static_cast<uint32_t>(i * 65521);
    float value;
    std::memcpy(&value, &bits, sizeof(value));
    if (!std::isnan(value)) values.push_back(value);
  }
  const auto append = [&values](const std::vector<float>& part) {
    values.insert(values.end(), part.begin(), part.end());
    for (float value : part) values.push_back(-value);
  };
  for (Format format : {Format::kE4M3, Format::kE5M2}) {
    std::vector<float> table, parts[3];
    for (int code = 0; code < 128; ++code) {
      if (std::isfinite(Codebook(format)[code])) table.push_back(Codebook(format)[code]);
    }
    for (size_t i = 1; i < table.size(); ++i) {
      const float middle = (table[i] + table[i - 1]) / 2;
      parts[0].push_back(middle);
      parts[1].push_back(std::nextafter(middle, std::numeric_limits<float>::infinity()));
      parts[2].push_back(std::nextafter(middle, 0.0f));
    }
    append(table);
    for (const std::vector<float>& part : parts) append(part);
  }
  append({464, 480, 61439, 61440, 61441, 65536, std::numeric_limits<float>::infinity()});
  return values;
}

void CheckScheme(const std::string& name, const std::vector<float>& values, const std::vector<uint32_t>& sums) {
  const ScaledScheme* scheme = FindScaledScheme(name);
  ASSERT_NE(scheme, nullptr);
  const QuantizedWeight w = Quantized(*scheme, values, kRows, kCols);
  EXPECT_EQ(Crc32(values), sums[0]);
  EXPECT_EQ(Crc32(Codes(w)), sums[1]);
  EXPECT_EQ(w.format == Format::kE2M1 ? Crc32(w.absmax_codes) : Crc32(w.absmax), sums[2]);
  EXPECT_EQ(Crc32(Decoded(w)), sums[3]);
}

void CheckTokens(bool symmetric, const std::vector<float>& values, const std::vector<uint32_t>& sums) {
  std::vector<uint8_t> codes(kRows * kCols);
  std::vector<float> scales(kRows);
  std::vector<int32_t> zeros(kRows);
  QuantizeTokensInt8({values.data(), kRows, kCols, kCols}, symmetric, reinterpret_cast<int8_t*>(codes.data()),
                     {scales.data(), kRows}, zeros.data());
  EXPECT_EQ(Crc32(codes), sums[0]);
  EXPECT_EQ(Crc32(scales), sums[1]);
  EXPECT_EQ(Crc32(zeros), sums[2]);
}

void CheckCast(const std::string& name, const std::vector<uint32_t>& sums) {
  const std::vector<float> values = CastPatterns();
  std::vector<uint8_t> codes;
  for (float value : values) codes.push_back(name == "fp8_e4m3" ? FloatToE4M3(value) : FloatToE5M2(value));
  EXPECT_EQ(Crc32(values), sums[0]);
  EXPECT_EQ(Crc32(codes), sums[1]);
}

void CheckTable(const std::string& name, const std::vector<uint32_t>& sums) {
  const float* book = Codebook(FindScaledScheme(name)->format);
  std::vector<float> table(book, book + 256);
  for (float& value : table) value = std::isnan(value) ? std::numeric_limits<float>::quiet_NaN() : value;
  EXPECT_EQ(Crc32(table), sums[0]);
}

TEST(SlowQuantizeScaledTest, EqualsTorchaoOnMillionsOfValues) {
  std::ifstream file(std::string(THIMBLE_SOURCE_DIR) + "/tests/golden/quantize_scaled/expected.txt");
  ASSERT_TRUE(file.good());
  int lines = 0, last_kind = -1;
  std::vector<float> values;
  for (std::string line; std::getline(file, line); ++lines) {
    SCOPED_TRACE(line);
    std::istringstream words(line);
    std::string what, name;
    int kind = -1;
    words >> what;
    const bool values_line = what == "scheme" || what == "tokens";
    if (values_line) words >> kind;
    words >> name;
    std::vector<uint32_t> sums;
    for (uint32_t sum; words >> std::hex >> sum;) sums.push_back(sum);
    if (values_line && kind != last_kind) values = GoldenValues(kind, kRows * kCols);
    if (values_line) last_kind = kind;
    if (what == "scheme") CheckScheme(name, values, sums);
    if (what == "tokens") CheckTokens(name == "symmetric", values, sums);
    if (what == "cast") CheckCast(name, sums);
    if (what == "table") CheckTable(name, sums);
  }
  EXPECT_EQ(lines, 72);
}

// The bit patterns that NVIDIA, Arm and Intel publish (arXiv:2209.05433, table 1), and OCP's for E2M1.
TEST(QuantizeScaledTest, PublishedBitPatterns) {
  EXPECT_EQ(E4M3ToFloat(0x7e), 448);
  EXPECT_EQ(E4M3ToFloat(0x08), 0x1p-6f);
  EXPECT_EQ(E4M3ToFloat(0x07), 0.875f * 0x1p-6f);
  EXPECT_EQ(E4M3ToFloat(0x01), 0x1p-9f);
  EXPECT_TRUE(std::isnan(E4M3ToFloat(0x7f)) && std::isnan(E4M3ToFloat(0xff)));
  EXPECT_EQ(E5M2ToFloat(0x7b), 57344);
  EXPECT_EQ(E5M2ToFloat(0x04), 0x1p-14f);
  EXPECT_EQ(E5M2ToFloat(0x03), 0.75f * 0x1p-14f);
  EXPECT_EQ(E5M2ToFloat(0x01), 0x1p-16f);
  EXPECT_EQ(E5M2ToFloat(0xfc), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(E5M2ToFloat(0x7d)) && std::isnan(E5M2ToFloat(0xff)));
  // There and back, every code that is a number; then ties, which go to the even code.
  for (int code = 0; code < 256; ++code) {
    const auto bits = static_cast<uint8_t>(code);
    const float e4m3 = E4M3ToFloat(bits), e5m2 = E5M2ToFloat(bits);
    EXPECT_EQ(std::isnan(e4m3) ? bits : FloatToE4M3(e4m3), bits);
    EXPECT_EQ(std::isnan(e5m2) ? bits : FloatToE5M2(e5m2), bits);
    EXPECT_EQ(FloatToE2M1(Codebook(Format::kE2M1)[code & 15]), bits & 15);
  }
  const float ties[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f, 7.0f};
  const uint8_t even[] = {0, 2, 2, 4, 4, 6, 6, 7};
  for (int i = 0; i < 8; ++i) {
    EXPECT_EQ(FloatToE2M1(ties[i]), even[i]) << ties[i];
    EXPECT_EQ(FloatToE2M1(-ties[i]), even[i] | 8) << ties[i];
    EXPECT_EQ(FloatToE2M1(std::nextafter(ties[i], 0.0f)), i == 7 ? 7 : i);
    EXPECT_EQ(FloatToE2M1(std::nextafter(ties[i], 8.0f)), std::min(i + 1, 7));
  }
}

TEST(QuantizeScaledTest, ZeroRowsAndTensors) {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    const std::vector<float> zeros(4 * 256, 0.0f);
    for (float value : Decoded(Quantized(scheme, zeros, 4, 256))) EXPECT_EQ(value, 0) << scheme.name;
  }
}

// Scales have a floor, so that no reciprocal is infinite.
TEST(QuantizeScaledTest, TinyValues) {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    const std::vector<float> values = GoldenValues(4, 4 * 256);
    const std::vector<float> decoded = Decoded(Quantized(scheme, values, 4, 256));
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(decoded[i], values[i], 0x1p-126) << scheme.name;
  }
}

TEST(QuantizeScaledTest, RefusesWhatIsNotFinite) {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    std::vector<float> values(4 * 256, 0.5f);
    values[700] = std::numeric_limits<float>::infinity();
    QuantizedWeight w = MakeScaledWeight(scheme.format, 4, 256, GroupOf(scheme.format, scheme.group, 256));
    if (scheme.format == Format::kE2M1) SetTensorScale(0.5f, &w);
    EXPECT_FALSE(QuantizeScaledRows({values.data(), 1024}, 0, &w)) << scheme.name;
  }
}

TEST(QuantizeScaledTest, GroupsFitIntoRows) {
  EXPECT_EQ(GroupOf(Format::kInt4, 0, 96), 96);
  EXPECT_EQ(GroupOf(Format::kInt4, 32, 96), 32);
  EXPECT_EQ(GroupOf(Format::kInt4, 64, 96), 0);
  EXPECT_EQ(GroupOf(Format::kInt4, 0, 97), 0);
  EXPECT_EQ(GroupOf(Format::kInt8, 0, 97), 97);
}

// By definition, from any element on: with offsets, with columns out of order, and through a product on every level.
TEST(QuantizeScaledTest, DecodeRowAndProductsFollowTheDefinition) {
  const int64_t rows = 5, cols = 128;
  std::vector<float> values = GoldenValues(0, rows * cols);
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    for (int kind = 0; kind < 3; ++kind) {
      QuantizedWeight w = Quantized(scheme, values, rows, cols);
      const int64_t blocks = rows * cols / w.block_size, in_row = cols / w.block_size;
      if (kind > 0) {
        for (int64_t b = 0; b < blocks; ++b) w.offsets.push_back(static_cast<float>(b) * 0.01f);
      }
      if (kind > 1) {
        for (int64_t c = 0; c < cols; ++c) w.column_blocks.push_back(static_cast<int32_t>(c * 7 % in_row));
      }
      const std::vector<uint8_t> codes = Codes(w);
      std::vector<float> expected(rows * cols);
      for (int64_t i = 0; i < rows * cols; ++i) {
        const int64_t block = kind > 1 ? i / cols * in_row + w.column_blocks[i % cols] : i / w.block_size;
        const float value = w.format == Format::kInt4 ? static_cast<int8_t>(codes[i]) : Codebook(w.format)[codes[i]];
        const float scale = w.double_quant() ? w.absmax_map[w.absmax_codes[block]] : w.absmax[block];
        expected[i] = value * scale;
        if (kind > 0) expected[i] += w.offsets[block];
      }
      for (int64_t begin : {0, 1, 15, 16, 127, 128, 300}) {
        for (int64_t count : {0, 1, 7, 16, 33, 128, 340}) {
          std::vector<float> out(count + 1, 7.0f);
          DecodeRow(w.View(), begin / cols, begin % cols, count, out.data());
          EXPECT_EQ(std::memcmp(out.data(), expected.data() + begin, count * sizeof(float)), 0)
              << scheme.name << " " << kind << " " << begin << " " << count;
          EXPECT_EQ(out[count], 7.0f);
        }
      }
      EXPECT_EQ(Decoded(w), expected);
      const WeightView plain(expected.data(), rows, cols);
      std::vector<float> y(3 * rows), reference(3 * rows);
      const ConstMatrix x(values.data(), 3, cols, cols);
      ForEachCpuLevel([&](const std::string& level) {
        ScratchBuffer scratch(MatMulScratchBytes());
        MatMulNT(x, w.View(), {y.data(), 3, rows, rows}, {}, scratch.view());
        MatMulNT(x, plain, {reference.data(), 3, rows, rows}, {}, scratch.view());
        EXPECT_EQ(y, reference) << scheme.name << " " << kind << " " << level;
      });
    }
  }
}

}  // namespace
}  // namespace thimble
