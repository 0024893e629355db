#include "ops/lora.h"

#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

constexpr float kScale = 1.75f;

// mask (0 or 1 / (1 - p)) of every element, from the op's own dropout of ones.
std::vector<double> Mask(const LoraDropout& dropout, int rows, int cols) {
  const TestMatrix ones(rows, cols, 1);
  TestMatrix mask(rows, cols);
  ApplyLoraDropout(ones.view(), dropout, 0, mask.view());
  return mask.To<double>();
}

// scale * (mask x) a^T b^T.
template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& x, const std::vector<double>& mask,
                              const std::vector<Scalar>& a, const std::vector<Scalar>& b, int in, int rank, int out) {
  const int rows = in == 0 ? 0 : x.size() / in;
  std::vector<Scalar> y;
  for (int t = 0; t < rows; ++t) {
    std::vector<Scalar> xa(rank, Scalar(0));
    for (int r = 0; r < rank; ++r) {
      for (int i = 0; i < in; ++i) xa[r] += x[t * in + i] * mask[t * in + i] * a[r * in + i];
    }
    for (int o = 0; o < out; ++o) {
      Scalar sum(0);
      for (int r = 0; r < rank; ++r) sum += xa[r] * b[o * rank + r];
      y.push_back(sum * static_cast<double>(kScale));
    }
  }
  return y;
}

TEST(LoraDropoutTest, MaskIsAFunctionOfRowAndColumn) {
  const LoraDropout dropout = {.p = 0.3f, .seed = 5, .counter = 9};
  const TestMatrix x = TestMatrix::Random(40, 2100, 1);
  TestMatrix all(40, 2100), part(7, 2100);
  ApplyLoraDropout(x.view(), dropout, 0, all.view());
  ApplyLoraDropout(x.view().Rows(11, 7), dropout, 11, part.view());
  int64_t kept = 0;
  for (int r = 0; r < 40; ++r) {
    for (int c = 0; c < 2100; ++c) {
      kept += all(r, c) != 0;
      if (all(r, c) != 0) {
        ASSERT_FLOAT_EQ(all(r, c), x(r, c) / 0.7f);
      }
      if (r >= 11 && r < 18) {
        ASSERT_EQ(all(r, c), part(r - 11, c));
      }
    }
  }
  const double count = 40 * 2100;
  EXPECT_NEAR(kept / count, 0.7, 5 * std::sqrt(0.21 / count));
  EXPECT_TRUE(all.PaddingIntact() && part.PaddingIntact());
}

TEST(LoraDropoutTest, SeedCounterAndRowChangeTheMask) {
  const std::vector<double> base = Mask({.p = 0.5f, .seed = 1, .counter = 1}, 2, 1000);
  EXPECT_NE(base, Mask({.p = 0.5f, .seed = 2, .counter = 1}, 2, 1000));
  EXPECT_NE(base, Mask({.p = 0.5f, .seed = 1, .counter = 2}, 2, 1000));
  EXPECT_NE(std::vector<double>(base.begin(), base.begin() + 1000),
            std::vector<double>(base.begin() + 1000, base.end()));
  EXPECT_EQ(base, Mask({.p = 0.5f, .seed = 1, .counter = 1}, 2, 1000));
}

TEST(LoraDropoutTest, AddsOntoTheGradient) {
  const LoraDropout dropout = {.p = 0.4f, .seed = 5, .counter = 9};
  const TestMatrix x = TestMatrix::Random(3, 37, 1), before = TestMatrix::Random(3, 37, 2);
  TestMatrix y = before, masked(3, 37);
  AddLoraDropout(x.view(), dropout, 4, y.view());
  ApplyLoraDropout(x.view(), dropout, 4, masked.view());
  for (int r = 0; r < 3; ++r) {
    for (int c = 0; c < 37; ++c) EXPECT_EQ(y(r, c), before(r, c) + masked(r, c));
  }
}

class LoraSizeTest : public ::testing::TestWithParam<std::tuple<int, int, int, int, float>> {};

TEST_P(LoraSizeTest, MatchesReferenceAndComplexStep) {
  const auto [rows, in, rank, out, p] = GetParam();
  const LoraDropout dropout = {.p = p, .seed = 3, .counter = 7};
  const TestMatrix x = TestMatrix::Random(rows, in, 1), a = TestMatrix::Random(rank, in, 2, 1, 0),
                   b = TestMatrix::Random(out, rank, 3, 1, 0), dy = TestMatrix::Random(rows, out, 4);
  TestMatrix xa(rows, rank), y = TestMatrix::Random(rows, out, 5), dx = TestMatrix::Random(rows, in, 6),
                             da = TestMatrix::Random(rank, in, 7), db = TestMatrix::Random(out, rank, 8);
  const std::vector<double> y0 = y.To<double>(), dx0 = dx.To<double>(), da0 = da.To<double>(), db0 = db.To<double>();
  TestScratch scratch(LoraScratchBytes(Compute::kF32, rows, in, out, rank));
  LoraForward(x.view(), a.view(), b.view(), kScale, dropout, Compute::kF32, xa.view(), y.view(), scratch.view());
  LoraBackward(x.view(), a.view(), b.view(), kScale, dropout, Compute::kF32, xa.view(), dy.view(), dx.view(), da.view(),
               db.view(), scratch.view());

  const std::vector<double> mask = Mask(dropout, rows, in), xs = x.To<double>(), as = a.To<double>(),
                            bs = b.To<double>(), weights = dy.To<double>();
  const std::vector<Complex> xc(xs.begin(), xs.end()), ac(as.begin(), as.end()), bc(bs.begin(), bs.end());
  // The three sums have in, rank, out and rows terms; each term is below the product of the largest factors.
  const double terms = in + rank + out + rows + 8;
  const auto check = [&](const TestMatrix& got, const std::vector<double>& before, std::vector<double> expected,
                         const char* name) {
    const double tolerance = terms * kFloatEpsilon * (8 + 4 * MaxAbs(expected));
    for (size_t i = 0; i < expected.size(); ++i) expected[i] += before[i];
    ExpectAllNear(got.Values(), expected, tolerance, name);
    EXPECT_TRUE(got.PaddingIntact()) << name;
  };
  const auto loss = [&, in = in, rank = rank, out = out](const auto& x, const auto& a, const auto& b) {
    return WeightedSum(weights, Reference(x, mask, a, b, in, rank, out));
  };
  check(y, y0, Reference(xs, mask, as, bs, in, rank, out), "y");
  check(dx, dx0, ComplexStepGradient([&](const std::vector<Complex>& z) { return loss(z, ac, bc); }, xs), "dx");
  check(da, da0, ComplexStepGradient([&](const std::vector<Complex>& z) { return loss(xc, z, bc); }, as), "da");
  check(db, db0, ComplexStepGradient([&](const std::vector<Complex>& z) { return loss(xc, ac, z); }, bs), "db");
  EXPECT_TRUE(xa.PaddingIntact() && scratch.GuardIntact());
}

INSTANTIATE_TEST_SUITE_P(Sizes, LoraSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 5), ::testing::Values(1, 19),
                                            ::testing::Values(1, 4), ::testing::Values(1, 11),
                                            ::testing::Values(0.0f, 0.25f)));

// More rows than a tile of dropout(x) holds, a frozen input, threads and levels.
TEST(LoraTest, TilesThreadsAndAFrozenInput) {
  const int rows = 41, in = 8192, rank = 3, out = 33;
  const LoraDropout dropout = {.p = 0.5f, .seed = 3, .counter = 7};
  const TestMatrix x = TestMatrix::Random(rows, in, 1), a = TestMatrix::Random(rank, in, 2, 1, 0),
                   b = TestMatrix::Random(out, rank, 3, 1, 0), dy = TestMatrix::Random(rows, out, 4);
  const auto run = [&](bool with_dx, Compute compute = Compute::kF32) {
    TestMatrix xa(rows, rank), y(rows, out), dx(rows, in), da(rank, in), db(out, rank);
    TestScratch scratch(LoraScratchBytes(compute, rows, in, out, rank));
    LoraForward(x.view(), a.view(), b.view(), kScale, dropout, compute, xa.view(), y.view(), scratch.view());
    LoraBackward(x.view(), a.view(), b.view(), kScale, dropout, compute, xa.view(), dy.view(),
                 with_dx ? dx.view() : Matrix(), da.view(), db.view(), scratch.view());
    EXPECT_TRUE(scratch.GuardIntact());
    const std::vector<float> gradients = Concatenate(Concatenate(y.Values(), da.Values()), db.Values());
    return with_dx ? Concatenate(gradients, dx.Values()) : gradients;
  };
  ExpectSameBitsForAnyThreadCount([&] { return run(true); });
  ExpectSameBitsForAnyThreadCount([&] { return run(true, Compute::kBF16); });
  const std::vector<float> all = run(true), frozen = run(false);
  EXPECT_TRUE(std::equal(frozen.begin(), frozen.end(), all.begin()));
  const std::vector<double> expected =
      Reference(x.To<double>(), Mask(dropout, rows, in), a.To<double>(), b.To<double>(), in, rank, out);
  ExpectAllNear({all.begin(), all.begin() + rows * out}, expected,
                (std::sqrt(in) + 100) * kFloatEpsilon * 4 * MaxAbs(expected), "y");
}

// A tile of tokens at a time: sums over tokens are cut at the same places.
TEST(LoraTest, PiecesOf256TokensGiveTheSameBits) {
  const int rows = 600, in = 600, rank = 5, out = 70;
  const TestMatrix x = TestMatrix::Random(rows, in, 1), a = TestMatrix::Random(rank, in, 2, 1, 0),
                   b = TestMatrix::Random(out, rank, 3, 1, 0), dy = TestMatrix::Random(rows, out, 4);
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    for (const float p : {0.0f, 0.25f}) {
      const auto run = [&](int piece) {
        TestMatrix xa(rows, rank), y(rows, out), dx(rows, in), da = TestMatrix::Random(rank, in, 7), db(out, rank);
        TestScratch scratch(LoraScratchBytes(compute, piece, in, out, rank));
        for (int row = 0; row < rows; row += piece) {
          const int n = std::min(piece, rows - row);
          const LoraDropout dropout = {.p = p, .seed = 3, .counter = 7, .first_row = row};
          LoraForward(x.view().Rows(row, n), a.view(), b.view(), kScale, dropout, compute, xa.view().Rows(row, n),
                      y.view().Rows(row, n), scratch.view());
          LoraBackward(x.view().Rows(row, n), a.view(), b.view(), kScale, dropout, compute, xa.view().Rows(row, n),
                       dy.view().Rows(row, n), dx.view().Rows(row, n), da.view(), db.view(), scratch.view());
        }
        EXPECT_TRUE(scratch.GuardIntact());
        return Concatenate(Concatenate(y.Values(), dx.Values()), Concatenate(da.Values(), db.Values()));
      };
      EXPECT_EQ(run(rows), run(256)) << "dropout " << p << (compute == Compute::kBF16 ? ", bf16" : "");
    }
  }
}

}  // namespace
}  // namespace thimble
