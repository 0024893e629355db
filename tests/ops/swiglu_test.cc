#include "ops/swiglu.h"

#include <cmath>
#include <complex>
#include <limits>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& gate, const std::vector<Scalar>& up) {
  std::vector<Scalar> y(gate.size());
  for (size_t i = 0; i < y.size(); ++i) y[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
  return y;
}

class SwiGLUSizeTest : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(SwiGLUSizeTest, MatchesReferenceAndComplexStep) {
  const auto [rows, cols, padding] = GetParam();
  const TestMatrix gate = TestMatrix::Random(rows, cols, 1, 4, padding),
                   up = TestMatrix::Random(rows, cols, 2, 1, padding),
                   dy = TestMatrix::Random(rows, cols, 3, 1, padding);
  TestMatrix y(rows, cols, 0, padding), dgate(rows, cols, 0, padding), dup(rows, cols, 0, padding);
  SwiGLUForward(gate.view(), up.view(), y.view());
  SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view());
  const std::vector<double> g = gate.To<double>(), u = up.To<double>(), weights = dy.To<double>();
  const std::vector<Complex> g_complex(g.begin(), g.end()), u_complex(u.begin(), u.end());
  const std::vector<double> expected = Reference(g, u);
  // Sigmoid 2.5 ulp and a few products; the factor 1 + g (1 - s) loses |g| roundings.
  ExpectAllNear(y.Values(), expected, 5 * kFloatEpsilon * MaxAbs(expected), "y");
  const std::vector<double> expected_dgate = ComplexStepGradient(
      [&](const std::vector<Complex>& z) { return WeightedSum(weights, Reference(z, u_complex)); }, g);
  const std::vector<double> expected_dup = ComplexStepGradient(
      [&](const std::vector<Complex>& z) { return WeightedSum(weights, Reference(g_complex, z)); }, u);
  ExpectAllNear(dgate.Values(), expected_dgate, 10 * kFloatEpsilon * (1 + MaxAbs(expected_dgate)), "dgate");
  ExpectAllNear(dup.Values(), expected_dup, 5 * kFloatEpsilon * MaxAbs(expected_dup), "dup");
  EXPECT_TRUE(y.PaddingIntact() && dgate.PaddingIntact() && dup.PaddingIntact());
}

INSTANTIATE_TEST_SUITE_P(Sizes, SwiGLUSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 5), ::testing::Values(0, 1, 16, 37),
                                            ::testing::Values(0, 3)));

TEST(SwiGLUTest, ReluSquaredMatchesReference) {
  const TestMatrix gate = TestMatrix::Random(5, 37, 1, 2), up = TestMatrix::Random(5, 37, 2),
                   dy = TestMatrix::Random(5, 37, 3);
  TestMatrix y(5, 37), dgate(5, 37), dup(5, 37);
  SwiGLUForward(gate.view(), up.view(), y.view(), GateActivation::kReluSquared);
  SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view(), GateActivation::kReluSquared);
  const std::vector<double> g = gate.To<double>(), u = up.To<double>(), d = dy.To<double>();
  std::vector<double> expected(g.size()), expected_dgate(g.size()), expected_dup(g.size());
  for (size_t i = 0; i < g.size(); ++i) {
    const double r = std::max(g[i], 0.0);
    expected[i] = r * r * u[i];
    expected_dgate[i] = d[i] * u[i] * 2 * r;
    expected_dup[i] = d[i] * r * r;
  }
  ExpectAllNear(y.Values(), expected, 2 * kFloatEpsilon * MaxAbs(expected), "y");
  ExpectAllNear(dgate.Values(), expected_dgate, 2 * kFloatEpsilon * MaxAbs(expected_dgate), "dgate");
  ExpectAllNear(dup.Values(), expected_dup, 2 * kFloatEpsilon * MaxAbs(expected_dup), "dup");
  TestMatrix nan(1, 1);
  nan(0, 0) = std::numeric_limits<float>::quiet_NaN();
  TestMatrix one(1, 1, 1), out(1, 1);
  SwiGLUForward(nan.view(), one.view(), out.view(), GateActivation::kReluSquared);
  EXPECT_TRUE(std::isnan(out(0, 0))) << "a NaN is not hidden";
}

TEST(SwiGLUTest, OutputsMayBeInputs) {
  const TestMatrix gate = TestMatrix::Random(3, 21, 1), up = TestMatrix::Random(3, 21, 2),
                   dy = TestMatrix::Random(3, 21, 3);
  TestMatrix dgate(3, 21), dup(3, 21);
  SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view());
  TestMatrix a = gate, b = up;
  SwiGLUBackward(a.view(), b.view(), dy.view(), a.view(), b.view());
  EXPECT_EQ(a.Values(), dgate.Values());
  EXPECT_EQ(b.Values(), dup.Values());
  a = gate;
  b = dy;
  SwiGLUBackward(a.view(), up.view(), b.view(), b.view(), a.view());
  EXPECT_EQ(b.Values(), dgate.Values());
  EXPECT_EQ(a.Values(), dup.Values());
}

TEST(SwiGLUTest, LargeFiniteGatesDoNotOverflow) {
  TestMatrix gate(1, 6), up(1, 6, 1), dy(1, 6, 1), y(1, 6), dgate(1, 6), dup(1, 6);
  const float values[] = {1e30f, -1e30f, 89, -89, -104, std::numeric_limits<float>::quiet_NaN()};
  for (int i = 0; i < 6; ++i) gate(0, i) = values[i];
  SwiGLUForward(gate.view(), up.view(), y.view());
  SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view());
  EXPECT_EQ(y(0, 0), 1e30f);
  EXPECT_EQ(y(0, 1), 0);
  EXPECT_EQ(y(0, 2), 89);
  EXPECT_NEAR(y(0, 3), 0, 2e-37);
  EXPECT_NEAR(y(0, 4), 0, 1e-42);
  EXPECT_TRUE(std::isnan(y(0, 5)) && std::isnan(dgate(0, 5)) && std::isnan(dup(0, 5)));
  EXPECT_EQ(dgate(0, 0), 1);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(std::isfinite(dgate(0, i)) && std::isfinite(dup(0, i))) << i;
}

TEST(SwiGLUTest, SameBitsForAnyThreadCountAndLevel) {
  const TestMatrix gate = TestMatrix::Random(211, 333, 1, 5), up = TestMatrix::Random(211, 333, 2),
                   dy = TestMatrix::Random(211, 333, 3);
  const auto run = [&] {
    TestMatrix y(211, 333), dgate(211, 333), dup(211, 333);
    SwiGLUForward(gate.view(), up.view(), y.view());
    SwiGLUBackward(gate.view(), up.view(), dy.view(), dgate.view(), dup.view());
    return Concatenate(Concatenate(y.Values(), dgate.Values()), dup.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
