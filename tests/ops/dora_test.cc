#include "ops/dora.h"

#include <cmath>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

constexpr float kScale = 0.75f;

std::vector<double> Mask(const LoraDropout& dropout, int rows, int cols) {
  const TestMatrix ones(rows, cols, 1);
  TestMatrix mask(rows, cols);
  ApplyLoraDropout(ones.view(), dropout, 0, mask.view());
  return mask.To<double>();
}

// y [rows, n] = x [rows, k] w [n, k]^T.
template <typename A, typename B>
auto Product(const std::vector<A>& x, const std::vector<B>& w, int k) {
  using Scalar = decltype(A() * B());
  const int rows = x.size() / k, n = w.size() / k;
  std::vector<Scalar> y(rows * n, Scalar(0));
  for (int t = 0; t < rows; ++t) {
    for (int o = 0; o < n; ++o) {
      for (int i = 0; i < k; ++i) y[t * n + o] += x[t * k + i] * w[o * k + i];
    }
  }
  return y;
}

// PEFT's value: W x + (k - 1) W x_d + k scale b a x_d with x_d = mask x, k = m / norm, norm constant.
template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& x, const std::vector<double>& mask,
                              const std::vector<double>& w, const std::vector<Scalar>& a, const std::vector<Scalar>& b,
                              const std::vector<Scalar>& m, const std::vector<double>& norm, int in, int rank) {
  std::vector<Scalar> xd = x;
  for (size_t i = 0; i < xd.size(); ++i) xd[i] *= mask[i];
  std::vector<Scalar> y = Product(x, w, in);
  const std::vector<Scalar> base = Product(xd, w, in), branch = Product(Product(xd, a, in), b, rank);
  for (size_t i = 0; i < y.size(); ++i) {
    const Scalar k = m[i % norm.size()] / norm[i % norm.size()];
    y[i] += (k - 1.0) * base[i] + k * static_cast<double>(kScale) * branch[i];
  }
  return y;
}

struct Case {
  int rows, in, rank, out;
  TestMatrix x, w, a, b, dy, norm, m;

  Case(int rows, int in, int rank, int out)
      : rows(rows),
        in(in),
        rank(rank),
        out(out),
        x(TestMatrix::Random(rows, in, 1)),
        w(TestMatrix::Random(out, in, 2, 1, 0)),
        a(TestMatrix::Random(rank, in, 3, 1, 0)),
        b(TestMatrix::Random(out, rank, 4, 1, 0)),
        dy(TestMatrix::Random(rows, out, 5)),
        norm(1, out),
        m(1, out) {
    TestScratch scratch(DoraNormScratchBytes(in));
    DoraNorm(weight(), a.view(), b.view(), kScale, norm.vector(), scratch.view());
    EXPECT_TRUE(scratch.GuardIntact() && norm.PaddingIntact());
    for (int o = 0; o < out; ++o) m(0, o) = norm(0, o) * (0.7f + 0.1f * (o % 7));
  }
  WeightView weight() const { return {w.view().data, out, in}; }
};

class DoraSizeTest : public ::testing::TestWithParam<std::tuple<int, int, int, int>> {};

void ExpectNormOfReference(const Case& c) {
  for (int o = 0; o < c.out; ++o) {
    double squares = 0;
    for (int i = 0; i < c.in; ++i) {
      double value = c.w(o, i);
      for (int r = 0; r < c.rank; ++r) value += static_cast<double>(kScale) * c.b(o, r) * c.a(r, i);
      squares += value * value;
    }
    // 64 additions a lane, and the roundings of the product's rank terms.
    EXPECT_NEAR(c.norm(0, o), std::sqrt(squares), (40 + 4 * c.rank) * kFloatEpsilon * std::sqrt(squares)) << o;
  }
}

TEST_P(DoraSizeTest, NormMatchesReference) {
  const auto [rows, in, rank, out] = GetParam();
  ExpectNormOfReference(Case(rows, in, rank, out));
}

// More rows and columns than a tile of W holds.
TEST(DoraTest, NormOfManyLongRows) { ExpectNormOfReference(Case(1, 2100, 2, 131)); }

TEST_P(DoraSizeTest, ScalingMatchesReferenceAndComplexStep) {
  const auto [rows, in, rank, out] = GetParam();
  const Case c(rows, in, rank, out);
  const TestMatrix z = TestMatrix::Random(rows, out, 6);
  TestMatrix y(rows, out), dz(rows, out), dm = TestMatrix::Random(1, out, 7);
  const std::vector<double> norm = c.norm.To<double>(), weights = c.dy.To<double>(), zs = z.To<double>(),
                            ms = c.m.To<double>(), dm0 = dm.To<double>();
  const auto reference = [&](const auto& z, const auto& m) {
    auto y = z;
    for (size_t i = 0; i < y.size(); ++i) y[i] = z[i] * m[i % norm.size()] / norm[i % norm.size()];
    return y;
  };
  const std::vector<Complex> zc(zs.begin(), zs.end()), mc(ms.begin(), ms.end());
  DoraForward(c.m.vector(), c.norm.vector(), z.view(), y.view());
  ExpectAllNear(y.Values(), reference(zs, ms), 20 * kFloatEpsilon, "y");
  DoraBackward(c.m.vector(), c.norm.vector(), z.view(), c.dy.view(), dz.view(), dm.vector());
  const std::vector<double> expected_dz =
      ComplexStepGradient([&](const std::vector<Complex>& v) { return WeightedSum(weights, reference(v, mc)); }, zs);
  std::vector<double> expected_dm =
      ComplexStepGradient([&](const std::vector<Complex>& v) { return WeightedSum(weights, reference(zc, v)); }, ms);
  for (int o = 0; o < out; ++o) expected_dm[o] += dm0[o];
  ExpectAllNear(dz.Values(), expected_dz, 20 * kFloatEpsilon, "dz");
  ExpectAllNear(dm.Values(), expected_dm, (rows + 8) * kFloatEpsilon * (4 + MaxAbs(expected_dm)), "dm");
  EXPECT_TRUE(y.PaddingIntact() && dz.PaddingIntact() && dm.PaddingIntact());
  TestMatrix in_place = z;
  DoraForward(c.m.vector(), c.norm.vector(), in_place.view());
  EXPECT_EQ(in_place.Values(), y.Values());
}

TEST_P(DoraSizeTest, DropoutFormMatchesPeftAndComplexStep) {
  const auto [rows, in, rank, out] = GetParam();
  const Case c(rows, in, rank, out);
  const LoraDropout dropout = {.p = 0.3f, .seed = 11, .counter = 4};
  TestMatrix xa(rows, rank), y(rows, out), dx(rows, in),
      da = TestMatrix::Random(rank, in, 8), db = TestMatrix::Random(out, rank, 9), dm = TestMatrix::Random(1, out, 10);
  const std::vector<double> da0 = da.To<double>(), db0 = db.To<double>(), dm0 = dm.To<double>();
  TestScratch scratch(DoraDropoutScratchBytes(Compute::kF32, rows, in, out, rank));
  MatMulNT(c.x.view(), c.weight(), y.view(), {}, scratch.view());
  MatMulNN(c.dy.view(), c.weight(), dx.view(), {}, scratch.view());
  DoraDropoutForward(c.x.view(), c.weight(), c.a.view(), c.b.view(), c.m.vector(), c.norm.vector(), kScale, dropout,
                     Compute::kF32, xa.view(), y.view(), scratch.view());
  DoraDropoutBackward(c.x.view(), c.weight(), c.a.view(), c.b.view(), c.m.vector(), c.norm.vector(), kScale, dropout,
                      Compute::kF32, xa.view(), c.dy.view(), dx.view(), da.view(), db.view(), dm.vector(),
                      scratch.view());
  const std::vector<double> mask = Mask(dropout, rows, in), w = c.w.To<double>(), norm = c.norm.To<double>(),
                            weights = c.dy.To<double>(), xs = c.x.To<double>(), as = c.a.To<double>(),
                            bs = c.b.To<double>(), ms = c.m.To<double>();
  const std::vector<Complex> xc(xs.begin(), xs.end()), ac(as.begin(), as.end()), bc(bs.begin(), bs.end()),
      mc(ms.begin(), ms.end());
  const auto loss = [&, in = in, rank = rank](const auto& x, const auto& a, const auto& b, const auto& m) {
    return WeightedSum(weights, Reference(x, mask, w, a, b, m, norm, in, rank));
  };
  const double terms = in + rank + out + rows + 8;
  const auto check = [&](const TestMatrix& got, std::vector<double> expected, const std::vector<double>& before,
                         const char* name) {
    const double tolerance = terms * kFloatEpsilon * (8 + 4 * MaxAbs(expected));
    for (size_t i = 0; i < before.size(); ++i) expected[i] += before[i];
    ExpectAllNear(got.Values(), expected, tolerance, name);
    EXPECT_TRUE(got.PaddingIntact()) << name;
  };
  using V = std::vector<Complex>;
  check(y, Reference(xs, mask, w, as, bs, ms, norm, in, rank), {}, "y");
  check(dx, ComplexStepGradient([&](const V& z) { return loss(z, ac, bc, mc); }, xs), {}, "dx");
  check(da, ComplexStepGradient([&](const V& z) { return loss(xc, z, bc, mc); }, as), da0, "da");
  check(db, ComplexStepGradient([&](const V& z) { return loss(xc, ac, z, mc); }, bs), db0, "db");
  check(dm, ComplexStepGradient([&](const V& z) { return loss(xc, ac, bc, z); }, ms), dm0, "dm");
  EXPECT_TRUE(scratch.GuardIntact());
}

INSTANTIATE_TEST_SUITE_P(Sizes, DoraSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 5), ::testing::Values(1, 19),
                                            ::testing::Values(1, 4), ::testing::Values(1, 11)));

// More output rows and tokens than one tile holds.
TEST(DoraTest, TilesAndThreads) {
  const Case c(203, 20, 3, 1320);
  const LoraDropout dropout = {.p = 0.3f, .seed = 11, .counter = 4};
  const auto run = [&](Compute compute) {
    TestMatrix norm(1, c.out), xa(c.rows, c.rank), y(c.rows, c.out), dx(c.rows, c.in), da(c.rank, c.in),
        db(c.out, c.rank), dm(1, c.out);
    TestScratch norm_scratch(DoraNormScratchBytes(c.in));
    DoraNorm(c.weight(), c.a.view(), c.b.view(), kScale, norm.vector(), norm_scratch.view());
    TestScratch scratch(DoraDropoutScratchBytes(compute, c.rows, c.in, c.out, c.rank));
    DoraDropoutForward(c.x.view(), c.weight(), c.a.view(), c.b.view(), c.m.vector(), norm.vector(), kScale, dropout,
                       compute, xa.view(), y.view(), scratch.view());
    DoraDropoutBackward(c.x.view(), c.weight(), c.a.view(), c.b.view(), c.m.vector(), norm.vector(), kScale, dropout,
                        compute, xa.view(), c.dy.view(), dx.view(), da.view(), db.view(), dm.vector(), scratch.view());
    EXPECT_TRUE(scratch.GuardIntact() && norm_scratch.GuardIntact());
    std::vector<float> all = norm.Values();
    for (const TestMatrix* part : {&y, &dx, &da, &db, &dm}) all = Concatenate(all, part->Values());
    return all;
  };
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    ExpectSameBitsForAnyThreadCount([&] { return run(compute); });
  }
}

}  // namespace
}  // namespace thimble
