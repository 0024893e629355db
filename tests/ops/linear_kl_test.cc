// Kullback-Leibler divergence of two heads against a dense reference in double.
#include "ops/linear_kl.h"

#include <tuple>

#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

struct Result {
  std::vector<double> kl;
  std::vector<int32_t> top_p, top_q;
};

std::vector<double> LogSoftmax(const TestMatrix& h, const TestMatrix& head, int64_t t, double cap, int32_t& top) {
  std::vector<double> z(head.rows());
  for (int64_t v = 0; v < head.rows(); ++v) {
    for (int64_t i = 0; i < h.cols(); ++i) z[v] += static_cast<double>(h(t, i)) * head(v, i);
    if (cap > 0) z[v] = cap * std::tanh(z[v] / cap);
  }
  top = static_cast<int32_t>(std::max_element(z.begin(), z.end()) - z.begin());
  double sum = 0;
  for (const double x : z) sum += std::exp(x - z[top]);
  const double lse = z[top] + std::log(sum);
  for (double& x : z) x -= lse;
  return z;
}

Result Reference(const TestMatrix& h_p, const TestMatrix& head_p, const TestMatrix& h_q, const TestMatrix& head_q,
                 double cap_p, double cap_q) {
  const int64_t rows = h_p.rows();
  Result r{std::vector<double>(rows), std::vector<int32_t>(rows), std::vector<int32_t>(rows)};
  for (int64_t t = 0; t < rows; ++t) {
    const auto p = LogSoftmax(h_p, head_p, t, cap_p, r.top_p[t]), q = LogSoftmax(h_q, head_q, t, cap_q, r.top_q[t]);
    for (size_t v = 0; v < p.size(); ++v) r.kl[t] += std::exp(p[v]) * (p[v] - q[v]);
  }
  return r;
}

struct Computed {
  TestMatrix kl;
  std::vector<int32_t> top_p, top_q;
};

// Heads are read without padding, as weights are.
Computed RunAll(const TestMatrix& h_p, const TestMatrix& head_p, const TestMatrix& h_q, const TestMatrix& head_q,
                float cap_p = 0, float cap_q = 0) {
  const int64_t rows = h_p.rows();
  Computed c{TestMatrix(1, rows, 7), std::vector<int32_t>(rows, -1), std::vector<int32_t>(rows, -1)};
  const auto values_p = head_p.Values(), values_q = head_q.Values();
  const WeightView p(values_p.data(), head_p.rows(), head_p.cols()), q(values_q.data(), head_q.rows(), head_q.cols());
  TestScratch scratch(LinearKLScratchBytes(rows, p, q));
  LinearKL(h_p.view(), p, h_q.view(), q, c.kl.vector(), {c.top_p.data(), rows}, {c.top_q.data(), rows}, scratch.view(),
           cap_p, cap_q);
  EXPECT_TRUE(scratch.GuardIntact());
  EXPECT_TRUE(c.kl.PaddingIntact());
  return c;
}

TEST(LinearKLTest, MatchesReference) {
  for (const auto& [rows, vocab, dim_p, dim_q, cap] : {std::tuple<int, int, int, int, float>{1, 1, 3, 2, 0},
                                                       {5, 77, 9, 20, 0},
                                                       {70, 300, 33, 31, 0},
                                                       {9, 130, 300, 40, 5.0f},
                                                       {3, 100, 4000, 3000, 0}}) {  // narrower tiles
    const TestMatrix h_p = TestMatrix::Random(rows, dim_p, 1), h_q = TestMatrix::Random(rows, dim_q, 2);
    const TestMatrix head_p = TestMatrix::Random(vocab, dim_p, 3, 0.3f), head_q = TestMatrix::Random(vocab, dim_q, 4);
    const Computed c = RunAll(h_p, head_p, h_q, head_q, cap, 2 * cap);
    const Result expected = Reference(h_p, head_p, h_q, head_q, cap, 2 * cap);
    ExpectAllNear(c.kl.Values(), expected.kl, 40 * kFloatEpsilon * (dim_p + dim_q), "kl");
    EXPECT_EQ(c.top_p, expected.top_p);
    EXPECT_EQ(c.top_q, expected.top_q);
  }
}

TEST(LinearKLTest, SmallDivergenceIsResolved) {
  const TestMatrix h = TestMatrix::Random(20, 64, 1), head = TestMatrix::Random(500, 64, 2, 0.3f);
  TestMatrix other = head;
  for (int64_t v = 0; v < other.rows(); ++v) other(v, v % 64) *= 1.01f;
  const Computed c = RunAll(h, head, h, other);
  const Result expected = Reference(h, head, h, other, 0, 0);
  EXPECT_LT(MaxAbs(expected.kl), 1e-3);
  EXPECT_GT(MaxAbs(expected.kl), 1e-6);
  ExpectAllNear(c.kl.Values(), expected.kl, 2e-7, "kl");
}

TEST(LinearKLTest, SameModelTwiceGivesZero) {
  const TestMatrix h = TestMatrix::Random(40, 50, 1, 3), head = TestMatrix::Random(333, 50, 2);
  const Computed c = RunAll(h, head, h, head);
  for (const float kl : c.kl.Values()) EXPECT_EQ(kl, 0);
  EXPECT_EQ(c.top_p, c.top_q);
}

TEST(LinearKLTest, TiesTakeTheLowestIdAndLargeLogitsStayFinite) {
  const TestMatrix h(3, 4, 50), head(200, 4, 50);  // every logit 1e4
  const Computed c = RunAll(h, head, h, TestMatrix::Random(200, 4, 5, 100));
  for (int t = 0; t < 3; ++t) {
    EXPECT_EQ(c.top_p[t], 0);
    EXPECT_TRUE(std::isfinite(c.kl.Values()[t]));
    EXPECT_GT(c.kl.Values()[t], 1);
  }
}

TEST(LinearKLTest, NoRows) {
  const TestMatrix h(0, 4), head = TestMatrix::Random(20, 4, 5);
  EXPECT_TRUE(RunAll(h, head, h, head).kl.Values().empty());
}

TEST(LinearKLTest, SameBitsForAnyThreadCountAndAnyBatch) {
  const TestMatrix h_p = TestMatrix::Random(150, 40, 1), h_q = TestMatrix::Random(150, 24, 2);
  const TestMatrix head_p = TestMatrix::Random(211, 40, 3), head_q = TestMatrix::Random(211, 24, 4);
  ExpectSameBitsForAnyThreadCount([&] { return RunAll(h_p, head_p, h_q, head_q).kl.Values(); });
  const float all = RunAll(h_p, head_p, h_q, head_q).kl.Values()[100];
  TestMatrix one_p(1, 40), one_q(1, 24);
  std::copy_n(h_p.view().row(100), 40, one_p.view().row(0));
  std::copy_n(h_q.view().row(100), 24, one_q.view().row(0));
  EXPECT_EQ(RunAll(one_p, head_p, one_q, head_q).kl.Values()[0], all);
}

// With cut cross-entropy's own scratch this is all that an evaluation takes beside weights and hidden states.
TEST(LinearKLTest, ScratchIsSmallWhateverTheVocabulary) {
  for (const int64_t dim : {64, 896, 1152, 2048, 4096, 6144}) {
    const WeightView small(static_cast<const float*>(nullptr), 1000, dim);
    const WeightView large(static_cast<const float*>(nullptr), 262144, dim);
    EXPECT_EQ(LinearKLScratchBytes(2048, large, large), LinearKLScratchBytes(2048, small, small));
    EXPECT_LE(LinearKLScratchBytes(8192, large, large), 2 << 20) << dim;
  }
  // Logits of these rows alone would be 48 MiB; the guard behind the scratch stays intact.
  const TestMatrix h_p = TestMatrix::Random(24, 16, 1), h_q = TestMatrix::Random(24, 8, 2);
  const TestMatrix head_p = TestMatrix::Random(262144, 16, 3), head_q = TestMatrix::Random(262144, 8, 4);
  const Computed c = RunAll(h_p, head_p, h_q, head_q);
  const Result expected = Reference(h_p, head_p, h_q, head_q, 0, 0);
  ExpectAllNear(c.kl.Values(), expected.kl, 1e-4, "kl");
  EXPECT_EQ(c.top_p, expected.top_p);
}

}  // namespace
}  // namespace thimble
