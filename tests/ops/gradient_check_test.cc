#include "tests/ops/gradient_check.h"

#include <complex>
#include <vector>

#include "gtest/gtest.h"

namespace thimble {
namespace {

TEST(GradientCheckTest, ComplexStepIsExactToRounding) {
  const std::vector<double> x = {0.7, -1.3, 2.1};
  const auto loss = [](const std::vector<Complex>& z) { return std::exp(z[0] * z[1]) / std::sqrt(1.0 + z[2] * z[2]); };
  const std::vector<double> gradient = ComplexStepGradient(loss, x);
  const double e = std::exp(x[0] * x[1]), root = std::sqrt(1 + x[2] * x[2]);
  EXPECT_NEAR(gradient[0], x[1] * e / root, 1e-15);
  EXPECT_NEAR(gradient[1], x[0] * e / root, 1e-15);
  EXPECT_NEAR(gradient[2], -e * x[2] / (root * root * root), 1e-15);
}

TEST(GradientCheckTest, PaddingShowsAWriteOutside) {
  TestMatrix matrix = TestMatrix::Random(2, 5, 1);
  EXPECT_TRUE(matrix.PaddingIntact());
  matrix(1, 5) = 1;
  EXPECT_FALSE(matrix.PaddingIntact());
}

TEST(GradientCheckTest, GuardShowsAWriteBehindTheScratch) {
  TestScratch scratch(100);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(scratch.view().data) % 64, 0u);
  static_cast<char*>(scratch.view().data)[99] = 1;
  EXPECT_TRUE(scratch.GuardIntact());
  static_cast<char*>(scratch.view().data)[100] = 1;
  EXPECT_FALSE(scratch.GuardIntact());
}

}  // namespace
}  // namespace thimble
