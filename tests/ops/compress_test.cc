#include "ops/compress.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/base/casts.h"
#include "gtest/gtest.h"
#include "ops/format.h"
#include "ops/parallel.h"
#include "ops/random.h"

namespace thimble {
namespace {

struct RoundTrip {
  std::vector<float> packed, back;
};

RoundTrip Pass(Compression compression, const std::vector<float>& x, int64_t rows) {
  const int64_t cols = static_cast<int64_t>(x.size()) / rows;
  RoundTrip trip;
  trip.packed.resize(rows * CompressedWords(compression, cols));
  trip.back.resize(x.size());
  Compress(compression, ConstMatrix(x.data(), rows, cols),
           Matrix(trip.packed.data(), rows, CompressedWords(compression, cols)));
  Decompress(compression, ConstMatrix(trip.packed.data(), rows, CompressedWords(compression, cols)),
             Matrix(trip.back.data(), rows, cols));
  return trip;
}

std::vector<float> Values(int64_t count) {
  std::vector<float> x(count);
  RandomNormal(5, 1, 0, 0, 1.5f, Vector(x.data(), count));
  return x;
}

TEST(CompressTest, BF16IsTheFormatsRounding) {
  for (const int64_t cols : {1, 2, 31, 64, 257}) {
    std::vector<float> x = Values(3 * cols);
    x[0] = 3.4e38f;  // rounds to infinity
    x[cols] = -0.0f;
    x.back() = 1e-41f;
    const RoundTrip trip = Pass(Compression::kBF16, x, 3);
    for (size_t i = 0; i < x.size(); ++i) {
      const float expected = BF16ToFloat(FloatToBF16(x[i]));
      EXPECT_EQ(absl::bit_cast<uint32_t>(trip.back[i]), absl::bit_cast<uint32_t>(expected)) << x[i];
    }
    const RoundTrip again = Pass(Compression::kBF16, trip.back, 3);
    EXPECT_EQ(std::memcmp(again.packed.data(), trip.packed.data(), trip.packed.size() * sizeof(float)), 0);
  }
}

TEST(CompressTest, Int8IsWithinHalfAStepOfItsBlock) {
  for (const int64_t cols : {1, 63, 64, 65, 300}) {
    std::vector<float> x = Values(4 * cols);
    for (int64_t i = 0; i < cols; ++i) x[i] *= 1e-39f;  // scales below the smallest normal number
    for (int64_t i = 0; i < cols; ++i) x[cols + i] = 0;
    const RoundTrip trip = Pass(Compression::kInt8, x, 4);
    for (int64_t row = 0; row < 4; ++row) {
      for (int64_t begin = 0; begin < cols; begin += kCompressionBlock) {
        const int64_t end = std::min(begin + kCompressionBlock, cols);
        float absmax = 0;
        for (int64_t i = begin; i < end; ++i) absmax = std::max(absmax, std::abs(x[row * cols + i]));
        // Denormal scales are themselves rounded.
        const float step = absmax / 127 * 0.501f + 200 * std::numeric_limits<float>::denorm_min();
        for (int64_t i = row * cols + begin; i < row * cols + end; ++i) EXPECT_NEAR(trip.back[i], x[i], step);
      }
    }
  }
}

TEST(CompressTest, NaNsAreNotLost) {
  std::vector<float> x = Values(128);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[70] = std::numeric_limits<float>::infinity();
  const RoundTrip half = Pass(Compression::kBF16, x, 1);
  EXPECT_TRUE(std::isnan(half.back[3]));
  EXPECT_TRUE(std::isinf(half.back[70]));
  const RoundTrip byte = Pass(Compression::kInt8, x, 1);
  EXPECT_TRUE(std::isnan(byte.back[3]));
  EXPECT_TRUE(std::isnan(byte.back[70]));
}

TEST(CompressTest, SameBytesForAnyNumberOfThreads) {
  const std::vector<float> x = Values(700 * 96);
  for (const Compression compression : {Compression::kBF16, Compression::kInt8}) {
    SetNumThreads(1);
    const RoundTrip one = Pass(compression, x, 700);
    SetNumThreads(2);
    const RoundTrip two = Pass(compression, x, 700);
    EXPECT_EQ(std::memcmp(one.packed.data(), two.packed.data(), one.packed.size() * sizeof(float)), 0);
    EXPECT_EQ(one.back, two.back);
  }
}

}  // namespace
}  // namespace thimble
