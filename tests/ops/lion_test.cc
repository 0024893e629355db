#include "ops/lion.h"

#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/golden_lines.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

// Six steps of bitsandbytes' Lion in f32 (tests/golden/ops/make_optimizers.py), gradients from 1e-6 to 1e2.
TEST(LionTest, MatchesBitsandbytes) {
  const LionOptions options = {.learning_rate = 3e-2, .beta1 = 0.9, .beta2 = 0.95, .weight_decay = 0.1};
  const auto golden = ReadGoldenLines("lion.txt");
  ASSERT_EQ(golden.size(), 1u + 6 * 3);
  std::vector<float> param = golden[0].second;
  const int64_t n = param.size();
  std::vector<float> m(n, 0);
  for (int step = 1; step <= 6; ++step) {
    const auto* lines = &golden[1 + 3 * (step - 1)];
    LionUpdate({lines[0].second.data(), n}, 1, options, {param.data(), n}, {m.data(), n});
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_NEAR(param[i], lines[1].second[i], 2 * step * kFloatEpsilon * 4) << step;
      EXPECT_NEAR(m[i], lines[2].second[i], step * kFloatEpsilon * 30) << step;
    }
  }
}

TEST(LionTest, FirstStepByHandAndZero) {
  std::vector<float> param = {1, 1, 1}, m = {0, 0, 0};
  const std::vector<float> grad = {0.5f, -0.25f, 0};
  LionUpdate({grad.data(), 3}, 1, {.learning_rate = 0.1, .weight_decay = 0.1}, {param.data(), 3}, {m.data(), 3});
  EXPECT_FLOAT_EQ(param[0], 0.89f);
  EXPECT_FLOAT_EQ(param[1], 1.09f);
  EXPECT_FLOAT_EQ(param[2], 0.99f);
  EXPECT_FLOAT_EQ(m[0], 0.005f);
  EXPECT_EQ(m[2], 0);
}

// Against the formula in double, any size. The direction must be far from zero for its sign to be that of the double.
TEST(LionTest, MatchesReferenceForAnySize) {
  for (const int64_t n : {0, 1, 7, 8, 37}) {
    TestMatrix param = TestMatrix::Random(1, n, 1), m(1, n);
    std::vector<double> p = param.To<double>(), dm(n, 0);
    for (int step = 1; step <= 20; ++step) {
      const TestMatrix grad = TestMatrix::Random(1, n, 10 + step);
      LionUpdate(grad.vector(), 0.25f, {.learning_rate = 1e-2, .weight_decay = 0.05}, param.vector(), m.vector());
      for (int64_t i = 0; i < n; ++i) {
        const double g = 0.25 * grad(0, i);
        const double direction = 0.9 * dm[i] + 0.1 * g;
        ASSERT_GT(std::abs(direction), 1e-6);
        p[i] = p[i] * (1 - 1e-2 * 0.05) - std::copysign(1e-2, direction);
        dm[i] = 0.99 * dm[i] + 0.01 * g;
      }
    }
    ExpectAllNear(param.Values(), p, 20 * 2 * 4 * kFloatEpsilon, "param");
    ExpectAllNear(m.Values(), dm, 20 * kFloatEpsilon, "m");
    EXPECT_TRUE(param.PaddingIntact() && m.PaddingIntact());
  }
}

TEST(LionTest, NaNSpoilsItsElementAlone) {
  std::vector<float> param = {1, 1}, m = {0, 0};
  const std::vector<float> grad = {std::numeric_limits<float>::quiet_NaN(), 1};
  LionUpdate({grad.data(), 2}, 1, {}, {param.data(), 2}, {m.data(), 2});
  EXPECT_TRUE(std::isnan(param[0]));
  EXPECT_FALSE(std::isnan(param[1]));
}

TEST(LionTest, SameBitsForAnyThreadCountAndLevel) {
  constexpr int64_t kCount = 100003;
  const TestMatrix grad = TestMatrix::Random(1, kCount, 1);
  const auto run = [&] {
    TestMatrix param = TestMatrix::Random(1, kCount, 2), m = TestMatrix::Random(1, kCount, 3);
    LionUpdate(grad.vector(), 0.5f, {.weight_decay = 0.1}, param.vector(), m.vector());
    return Concatenate(param.Values(), m.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
