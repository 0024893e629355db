#include "ops/grad_norm.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

TEST(GradNormTest, MatchesReferenceForAnySize) {
  for (const int64_t n : {0, 1, 15, 16, 17, 16383, 16384, 16385, 100003}) {
    const TestMatrix x = TestMatrix::Random(1, n, 1);
    long double exact = 0;
    for (const float v : x.Values()) exact += static_cast<long double>(v) * v;
    // At most 1024 additions in a lane, 4 levels of the tree and the chunks.
    EXPECT_NEAR(SumOfSquares(x.vector()), static_cast<double>(exact), 1100 * 1.2e-16 * static_cast<double>(exact)) << n;
  }
}

TEST(GradNormTest, LargestFloatsDoNotOverflow) {
  const std::vector<float> x(40, std::numeric_limits<float>::max());
  EXPECT_DOUBLE_EQ(SumOfSquares({x.data(), 40}), 40 * std::pow(static_cast<double>(x[0]), 2));
}

TEST(GradNormTest, NanAndInfinityAreSeenAnywhere) {
  for (const int at : {0, 7, 30, 36}) {
    std::vector<float> x(37, 1);
    x[at] = std::numeric_limits<float>::infinity();
    EXPECT_EQ(SumOfSquares({x.data(), 37}), std::numeric_limits<double>::infinity());
    x[at] = std::numeric_limits<float>::quiet_NaN();
    EXPECT_TRUE(std::isnan(SumOfSquares({x.data(), 37})));
  }
}

TEST(GradNormTest, ClipFactor) {
  EXPECT_EQ(ClipFactor(5, 0), 1);
  EXPECT_EQ(ClipFactor(0.5, 1), 1);
  EXPECT_EQ(ClipFactor(0, 1), 1);
  EXPECT_FLOAT_EQ(ClipFactor(4, 1), 1 / (4 + 1e-6));
  EXPECT_EQ(ClipFactor(1, 1), static_cast<float>(1 / (1 + 1e-6)));
  EXPECT_EQ(ClipFactor(std::numeric_limits<double>::infinity(), 1), 0);
  EXPECT_TRUE(std::isnan(ClipFactor(std::numeric_limits<double>::quiet_NaN(), 1)));
}

TEST(GradNormTest, SameBitsForAnyThreadCountAndLevel) {
  const TestMatrix x = TestMatrix::Random(1, 200001, 1);
  const auto run = [&] {
    const double sum = SumOfSquares(x.vector());
    std::vector<float> bits(2);
    std::memcpy(bits.data(), &sum, sizeof(sum));
    return bits;
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
