#include "ops/adamw.h"

#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/golden_lines.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

// Six steps of torch.optim.AdamW (tests/golden/ops/make.py), gradients from 1e-6 to 1e2.
TEST(AdamWTest, MatchesTorch) {
  AdamWOptions options = {.learning_rate = 3e-2, .beta1 = 0.9, .beta2 = 0.99, .eps = 1e-6, .weight_decay = 0.1};
  const auto golden = ReadGoldenLines("adamw.txt");
  ASSERT_EQ(golden.size(), 1u + 6 * 4);
  std::vector<float> param = golden[0].second;
  const int64_t n = param.size();
  std::vector<float> m(n, 0), v(n, 0);
  for (int step = 1; step <= 6; ++step) {
    const auto* lines = &golden[1 + 4 * (step - 1)];
    options.step = step;
    AdamWUpdate({lines[0].second.data(), n}, 1, options, {param.data(), n}, {m.data(), n}, {v.data(), n});
    for (int64_t i = 0; i < n; ++i) {
      // torch's vector code may fuse: an ulp a step of the terms, which are at most 0.03 / root, or the values.
      EXPECT_NEAR(param[i], lines[1].second[i], 2 * step * kFloatEpsilon * std::abs(lines[1].second[i])) << step;
      EXPECT_NEAR(m[i], lines[2].second[i], step * kFloatEpsilon * 30) << step;
      EXPECT_NEAR(v[i], lines[3].second[i], 2 * step * kFloatEpsilon * lines[3].second[i]) << step;
    }
  }
}

TEST(AdamWTest, FirstStepByHand) {
  float param = 1, m = 0, v = 0;
  const float grad = 0.5f;
  AdamWUpdate({&grad, 1}, 1, {.learning_rate = 0.1, .weight_decay = 0.1, .step = 1}, {&param, 1}, {&m, 1}, {&v, 1});
  EXPECT_FLOAT_EQ(param, 0.89f);
  EXPECT_FLOAT_EQ(m, 0.05f);
  EXPECT_FLOAT_EQ(v, 0.00025f);
}

// Against the formula in double, any size, over 20 steps with a clip factor.
TEST(AdamWTest, MatchesReferenceForAnySize) {
  for (const int64_t n : {0, 1, 7, 8, 37}) {
    TestMatrix param = TestMatrix::Random(1, n, 1), m(1, n), v(1, n);
    std::vector<double> p = param.To<double>(), dm(n, 0), dv(n, 0);
    AdamWOptions options = {.learning_rate = 1e-2, .weight_decay = 0.05};
    for (options.step = 1; options.step <= 20; ++options.step) {
      const TestMatrix grad = TestMatrix::Random(1, n, 10 + options.step);
      AdamWUpdate(grad.vector(), 0.25f, options, param.vector(), m.vector(), v.vector());
      for (int64_t i = 0; i < n; ++i) {
        const double g = 0.25 * grad(0, i);
        dm[i] = 0.9 * dm[i] + 0.1 * g;
        dv[i] = 0.999 * dv[i] + 0.001 * g * g;
        const double root = std::sqrt(dv[i] / (1 - std::pow(0.999, options.step)));
        p[i] = p[i] * (1 - 1e-2 * 0.05) - 1e-2 * dm[i] / (1 - std::pow(0.9, options.step)) / (root + 1e-8);
      }
    }
    // Two roundings of |p| < 4 a step.
    ExpectAllNear(param.Values(), p, 20 * 2 * 4 * kFloatEpsilon, "param");
    ExpectAllNear(m.Values(), dm, 20 * kFloatEpsilon, "m");
    ExpectAllNear(v.Values(), dv, 20 * kFloatEpsilon * MaxAbs(dv), "v");
    EXPECT_TRUE(param.PaddingIntact() && m.PaddingIntact() && v.PaddingIntact());
  }
}

TEST(AdamWTest, SameBitsForAnyThreadCountAndLevel) {
  constexpr int64_t kCount = 100003;
  const TestMatrix grad = TestMatrix::Random(1, kCount, 1);
  const auto run = [&] {
    TestMatrix param = TestMatrix::Random(1, kCount, 2), m = TestMatrix::Random(1, kCount, 3), v(1, kCount, 0.5f);
    AdamWUpdate(grad.vector(), 0.5f, {.weight_decay = 0.1, .step = 3}, param.vector(), m.vector(), v.vector());
    return Concatenate(Concatenate(param.Values(), m.Values()), v.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
