#include "ops/bias.h"

#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& b, std::vector<Scalar> y) {
  for (size_t i = 0; i < y.size(); ++i) y[i] += b[i % b.size()];
  return y;
}

class BiasSizeTest : public ::testing::TestWithParam<std::tuple<int, int>> {};

TEST_P(BiasSizeTest, ForwardMatchesReferenceAndBackwardTheComplexStep) {
  const auto [rows, cols] = GetParam();
  const TestMatrix b = TestMatrix::Random(1, cols, 1), dy = TestMatrix::Random(rows, cols, 2);
  TestMatrix y = TestMatrix::Random(rows, cols, 3), db = TestMatrix::Random(1, cols, 4);
  const std::vector<double> y_before = y.To<double>(), db_before = db.To<double>();
  BiasForward(b.vector(), y.view());
  if (cols > 0) {
    ExpectAllNear(y.Values(), Reference(b.To<double>(), y_before), 8 * kFloatEpsilon, "y");
  }
  BiasBackward(dy.view(), db.vector());
  if (cols > 0) {
    const std::vector<Complex> y_complex(y_before.begin(), y_before.end());
    std::vector<double> expected = ComplexStepGradient(
        [&](const std::vector<Complex>& z) { return WeightedSum(dy.To<double>(), Reference(z, y_complex)); },
        b.To<double>());
    for (int c = 0; c < cols; ++c) expected[c] += db_before[c];
    // 16 additions of four rows in float, each of magnitude below 6 sqrt(rows), and the final one.
    ExpectAllNear(db.Values(), expected, 20 * kFloatEpsilon * 6 * std::sqrt(rows + 1.0), "db");
  }
  EXPECT_TRUE(y.PaddingIntact() && db.PaddingIntact());
}

INSTANTIATE_TEST_SUITE_P(Sizes, BiasSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 5, 67), ::testing::Values(0, 1, 17, 257)));

TEST(BiasTest, SameBitsForAnyThreadCountAndLevel) {
  const TestMatrix b = TestMatrix::Random(1, 1301, 1), dy = TestMatrix::Random(203, 1301, 2);
  const auto run = [&] {
    TestMatrix y = dy, db(1, 1301);
    BiasForward(b.vector(), y.view());
    BiasBackward(dy.view(), db.vector());
    return Concatenate(y.Values(), db.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
