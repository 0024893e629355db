#include "ops/elementwise.h"

#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

class ElementwiseSizeTest : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(ElementwiseSizeTest, MatchesReferenceAndHonoursStride) {
  const auto [rows, cols, padding] = GetParam();
  const TestMatrix a = TestMatrix::Random(rows, cols, 1, 1, padding), b = TestMatrix::Random(rows, cols, 2, 1, padding);
  TestMatrix sum(rows, cols, 0, padding), scaled(rows, cols, 0, padding), filled(rows, cols, 0, padding),
      copied(rows, cols, 0, padding);
  Add(a.view(), b.view(), sum.view());
  Scale(-1.7f, a.view(), scaled.view());
  Fill(2.5f, filled.view());
  Copy(a.view(), copied.view());
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < cols; ++c) {
      ASSERT_EQ(sum(r, c), a(r, c) + b(r, c));
      ASSERT_EQ(scaled(r, c), -1.7f * a(r, c));
      ASSERT_EQ(filled(r, c), 2.5f);
      ASSERT_EQ(copied(r, c), a(r, c));
    }
  }
  EXPECT_TRUE(sum.PaddingIntact() && scaled.PaddingIntact() && filled.PaddingIntact() && copied.PaddingIntact());
}

INSTANTIATE_TEST_SUITE_P(Sizes, ElementwiseSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 3), ::testing::Values(0, 1, 16, 37),
                                            ::testing::Values(0, 3)));

TEST(ElementwiseTest, OutputMayBeAnInput) {
  TestMatrix a = TestMatrix::Random(3, 19, 1);
  const TestMatrix before = a;
  Add(a.view(), a.view(), a.view());
  Scale(0.5f, a.view(), a.view());
  EXPECT_EQ(a.Values(), before.Values());
}

TEST(ElementwiseTest, SameBitsForAnyThreadCountAndLevel) {
  const TestMatrix a = TestMatrix::Random(301, 333, 1), b = TestMatrix::Random(301, 333, 2);
  const auto run = [&] {
    TestMatrix sum(301, 333), scaled(301, 333);
    Add(a.view(), b.view(), sum.view());
    Scale(0.3f, a.view(), scaled.view());
    return Concatenate(sum.Values(), scaled.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
