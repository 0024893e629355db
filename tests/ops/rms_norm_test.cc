#include "ops/rms_norm.h"

#include <cmath>
#include <complex>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

constexpr float kEps = 1e-5f;

template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& x, const std::vector<Scalar>& w) {
  const size_t dim = w.size();
  std::vector<Scalar> y(x.size());
  for (size_t begin = 0; begin < x.size(); begin += dim) {
    Scalar squares(0);
    for (size_t i = 0; i < dim; ++i) squares += x[begin + i] * x[begin + i];
    const Scalar rstd = 1.0 / std::sqrt(squares / static_cast<double>(dim) + static_cast<double>(kEps));
    for (size_t i = 0; i < dim; ++i) y[begin + i] = x[begin + i] * rstd * w[i];
  }
  return y;
}

class RmsNormSizeTest : public ::testing::TestWithParam<std::tuple<int, int>> {
 protected:
  RmsNormSizeTest()
      : rows_(std::get<0>(GetParam())),
        dim_(std::get<1>(GetParam())),
        x_(TestMatrix::Random(rows_, dim_, 1)),
        w_(TestMatrix::Random(1, dim_, 2)),
        dy_(TestMatrix::Random(rows_, dim_, 3)) {}

  // A few roundings an element; the sum of squares has 64 additions a lane and relative weight one half.
  double Tolerance(const std::vector<double>& expected) const { return 40 * kFloatEpsilon * (1 + MaxAbs(expected)); }

  int rows_, dim_;
  TestMatrix x_, w_, dy_;
};

TEST_P(RmsNormSizeTest, ForwardMatchesReference) {
  TestMatrix y(rows_, dim_), rstd(1, rows_);
  RmsNormForward(x_.view(), w_.vector(), kEps, y.view(), rstd.vector());
  const std::vector<double> expected = Reference(x_.To<double>(), w_.To<double>());
  ExpectAllNear(y.Values(), expected, Tolerance(expected), "y");
  EXPECT_TRUE(y.PaddingIntact() && rstd.PaddingIntact());
}

TEST_P(RmsNormSizeTest, BackwardMatchesComplexStep) {
  TestMatrix y(rows_, dim_), rstd(1, rows_), dx(rows_, dim_), dw = TestMatrix::Random(1, dim_, 4);
  std::vector<double> expected_dw = dw.To<double>();
  RmsNormForward(x_.view(), w_.vector(), kEps, y.view(), rstd.vector());
  TestScratch scratch(RmsNormScratchBytes(rows_, dim_));
  RmsNormBackward(x_.view(), w_.vector(), rstd.vector(), dy_.view(), dx.view(), dw.vector(), scratch.view());
  const std::vector<double> x = x_.To<double>(), w = w_.To<double>(), dy = dy_.To<double>();
  const std::vector<Complex> x_complex(x.begin(), x.end()), w_complex(w.begin(), w.end());
  const std::vector<double> expected_dx =
      ComplexStepGradient([&](const std::vector<Complex>& z) { return WeightedSum(dy, Reference(z, w_complex)); }, x);
  const std::vector<double> gradient =
      ComplexStepGradient([&](const std::vector<Complex>& z) { return WeightedSum(dy, Reference(x_complex, z)); }, w);
  for (int i = 0; i < dim_; ++i) expected_dw[i] += gradient[i];
  ExpectAllNear(dx.Values(), expected_dx, Tolerance(expected_dx), "dx");
  ExpectAllNear(dw.Values(), expected_dw, (rows_ + 8) * Tolerance(expected_dw), "dw");
  EXPECT_TRUE(dx.PaddingIntact() && dw.PaddingIntact() && scratch.GuardIntact());

  TestMatrix frozen(rows_, dim_);
  RmsNormBackward(x_.view(), w_.vector(), rstd.vector(), dy_.view(), frozen.view(), {}, {});
  EXPECT_EQ(frozen.Values(), dx.Values());
  TestMatrix in_place = dy_;
  RmsNormBackward(x_.view(), w_.vector(), rstd.vector(), in_place.view(), in_place.view(), {}, {});
  EXPECT_EQ(in_place.Values(), dx.Values());
}

INSTANTIATE_TEST_SUITE_P(Sizes, RmsNormSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 5, 35), ::testing::Values(1, 7, 16, 37)));

// Heads of one token lie side by side: the same call with rows = tokens * heads.
TEST(RmsNormTest, PerHeadIsTheSameCallOnMoreRows) {
  const int tokens = 3, heads = 5, head_dim = 9;
  const TestMatrix x = TestMatrix::Random(tokens, heads * head_dim, 1, 1, 0), w = TestMatrix::Random(1, head_dim, 2);
  TestMatrix y(tokens, heads * head_dim, 0, 0), rstd(1, tokens * heads);
  RmsNormForward({x.view().data, tokens * heads, head_dim}, w.vector(), kEps, {y.view().data, tokens * heads, head_dim},
                 rstd.vector());
  const std::vector<double> expected = Reference(x.To<double>(), w.To<double>());
  ExpectAllNear(y.Values(), expected, 40 * kFloatEpsilon * (1 + MaxAbs(expected)), "y");
}

TEST(RmsNormTest, LongRowsStayAccurate) {
  const int dim = 5000;
  const TestMatrix x = TestMatrix::Random(2, dim, 1), w(1, dim, 1), dy = TestMatrix::Random(2, dim, 3);
  TestMatrix y(2, dim), rstd(1, 2), dx(2, dim);
  RmsNormForward(x.view(), w.vector(), kEps, y.view(), rstd.vector());
  RmsNormBackward(x.view(), w.vector(), rstd.vector(), dy.view(), dx.view(), {}, {});
  const std::vector<double> values = x.To<double>(), gradient = dy.To<double>();
  for (int r = 0; r < 2; ++r) {
    double squares = 0, dot = 0;
    for (int i = 0; i < dim; ++i) {
      squares += values[r * dim + i] * values[r * dim + i];
      dot += values[r * dim + i] * gradient[r * dim + i];
    }
    const double exact = 1 / std::sqrt(squares / dim + static_cast<double>(kEps));
    EXPECT_NEAR(rstd(0, r), exact, 35 * kFloatEpsilon * exact);
    for (int i = 0; i < dim; ++i) {
      const double expected = gradient[r * dim + i] * exact - values[r * dim + i] * exact * exact * exact * dot / dim;
      ASSERT_NEAR(dx(r, i), expected, 40 * kFloatEpsilon * 5);
    }
  }
}

TEST(RmsNormTest, ARowDoesNotDependOnItsNeighbours) {
  const TestMatrix x = TestMatrix::Random(8, 77, 1), w = TestMatrix::Random(1, 77, 2);
  TestMatrix all(8, 77), one(1, 77), rstd(1, 8);
  RmsNormForward(x.view(), w.vector(), kEps, all.view(), rstd.vector());
  RmsNormForward(x.view().Rows(5, 1), w.vector(), kEps, one.view(), {rstd.vector().data, 1});
  for (int c = 0; c < 77; ++c) EXPECT_EQ(all(5, c), one(0, c));
}

TEST(RmsNormTest, SameBitsForAnyThreadCountAndLevel) {
  const TestMatrix x = TestMatrix::Random(321, 333, 1), w = TestMatrix::Random(1, 333, 2),
                   dy = TestMatrix::Random(321, 333, 3);
  const auto run = [&] {
    TestMatrix y(321, 333), rstd(1, 321), dx(321, 333), dw(1, 333);
    RmsNormForward(x.view(), w.vector(), kEps, y.view(), rstd.vector());
    TestScratch scratch(RmsNormScratchBytes(321, 333));
    RmsNormBackward(x.view(), w.vector(), rstd.vector(), dy.view(), dx.view(), dw.vector(), scratch.view());
    return Concatenate(Concatenate(y.Values(), dx.Values()), dw.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
