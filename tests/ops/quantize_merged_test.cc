// Merged and quantised weights against the same in three plain steps.
#include "ops/quantize_merged.h"

#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/quantize_blocks.h"
#include "ops/quantize_scaled.h"
#include "ops/scratch_buffer.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

constexpr int kRows = 133, kCols = 512, kRank = 5;

TEST(QuantizeMergedTest, TheBytesOfMergingFirst) {
  TestMatrix w = TestMatrix::Random(kRows, kCols, 1), a = TestMatrix::Random(kRank, kCols, 2);
  TestMatrix b = TestMatrix::Random(kRows, kRank, 3);
  std::vector<float> plain(kRows * kCols), merged(kRows * kCols);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) {
      float delta = 0;
      for (int k = 0; k < kRank; ++k) delta += b(r, k) * a(k, c);
      plain[r * kCols + c] = w(r, c);
      merged[r * kCols + c] = w(r, c) + 0.75f * delta;
    }
  }
  for (int f = 0; f < kFormats; ++f) {
    const auto format = static_cast<Format>(f);
    if (!CanQuantizeMerged(format) || HasScales(format)) continue;
    for (const bool adapter : {false, true}) {
      const std::vector<float>& values = adapter ? merged : plain;
      std::vector<uint8_t> expected(StoredBytes(format, kRows * kCols)), found(expected.size());
      if (IsBlockFormat(format)) {
        QuantizeBlocks(format, ConstVector(values.data(), kRows * kCols), expected.data());
      } else {
        auto* bits = reinterpret_cast<uint16_t*>(expected.data());
        for (const float v : values) *bits++ = format == Format::kF16 ? FloatToF16(v) : FloatToBF16(v);
      }
      MergedWeight source;
      source.w = WeightView(plain.data(), kRows, kCols);
      if (adapter) {
        source.a = a.view();
        source.b = b.view();
        source.scale = 0.75f;
      }
      WeightView out;
      out.format = format;
      out.rows = kRows;
      out.cols = kCols;
      out.data = found.data();
      ScratchBuffer scratch(QuantizeMergedScratchBytes(kCols));
      QuantizeMerged(source, out, scratch.view());
      EXPECT_TRUE(found == expected) << InfoOf(format).name << " " << adapter;
    }
  }
}

TEST(QuantizeMergedTest, CodesWithScalesAreThoseOfQuantizingTheWhole) {
  TestMatrix w = TestMatrix::Random(kRows, kCols, 1);
  std::vector<float> values(kRows * kCols);
  for (int r = 0; r < kRows; ++r) {
    for (int c = 0; c < kCols; ++c) values[r * kCols + c] = w(r, c);
  }
  int schemes = 0;
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    if (!CanQuantizeMerged(scheme.format)) continue;
    ++schemes;
    const int64_t group = GroupOf(scheme.format, scheme.group, kCols);
    QuantizedWeight expected = MakeScaledWeight(scheme.format, kRows, kCols, group), found = expected;
    ASSERT_TRUE(QuantizeScaledRows(ConstVector(values.data(), kRows * kCols), 0, &expected));
    MergedWeight source;
    source.w = WeightView(values.data(), kRows, kCols);
    ScratchBuffer scratch(QuantizeMergedScratchBytes(kCols));
    QuantizeMerged(source, found.View(), scratch.view());
    EXPECT_EQ(found.codes, expected.codes) << scheme.name;
    EXPECT_EQ(found.absmax, expected.absmax) << scheme.name;
  }
  EXPECT_EQ(schemes, 7);
}

}  // namespace
}  // namespace thimble
