// Attention against an obvious loop in double, gradients by complex step, packing, cache form, strides, same bits.
#include "ops/attention.h"

#include <numeric>

#include "ops/cpu_level.h"
#include "ops/format.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

struct Case {
  AttentionShape shape;
  std::vector<int> lengths;  // of the packed samples
  std::string name;
};

AttentionShape Shape(int heads, int kv_heads, int dim, int64_t window = 0, float soft_cap = 0) {
  return {heads, kv_heads, dim, 1.0f / std::sqrt(static_cast<float>(dim)), window, soft_cap};
}

AttentionShape InBF16(AttentionShape shape) {
  shape.compute = Compute::kBF16;
  return shape;
}

std::vector<Case> Cases() {
  return {{Shape(1, 1, 2), {1}, "one token"},
          {Shape(2, 1, 6), {5}, "grouped"},
          {Shape(4, 2, 8), {1, 2, 9, 1}, "packed"},
          {Shape(3, 3, 10, 4), {9, 3}, "window"},
          {Shape(2, 2, 4, 1), {6}, "window of one"},
          {Shape(2, 1, 12, 0, 1.5f), {11, 7}, "soft cap"},
          {Shape(6, 2, 10, 5, 2.0f), {9, 1, 12}, "window and soft cap"}};
}

// Sizes that cross tile boundaries; only for the forward and the same-bits checks.
std::vector<Case> LargeCases() {
  return {{Shape(14, 2, 64), {200, 1, 65}, "several tiles"},
          {Shape(2, 2, 32, 70), {300}, "window over tiles"},
          {Shape(8, 1, 128), {64, 129}, "one key/value head"},
          {Shape(2, 1, 256, 0, 5.0f), {130}, "wide head"},
          {Shape(4, 4, 66, 33), {31, 100, 64}, "odd width"}};
}

std::vector<int32_t> Starts(const std::vector<int>& lengths) {
  std::vector<int32_t> starts;
  for (const int length : lengths) starts.insert(starts.end(), length, static_cast<int32_t>(starts.size()));
  return starts;
}

template <typename S>
struct Reference {
  std::vector<S> out, lse;
};

// q [rows, H*D] of the last `rows` of the k.size() / (KV*D) tokens.
template <typename S>
Reference<S> ReferenceForward(const std::vector<S>& q, const std::vector<S>& k, const std::vector<S>& v,
                              const std::vector<int32_t>& starts, const AttentionShape& shape) {
  const int64_t heads = shape.num_heads, kv = shape.num_kv_heads, dim = shape.head_dim, rows = starts.size();
  const int64_t offset = static_cast<int64_t>(k.size()) / (kv * dim) - rows;
  Reference<S> result{std::vector<S>(rows * heads * dim), std::vector<S>(rows * heads)};
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t g = h / (heads / kv), last = offset + i;
      std::vector<S> scores;
      double max = -1e300;
      int64_t first = starts[i];
      if (shape.window > 0) first = std::max(first, last - shape.window + 1);
      for (int64_t j = first; j <= last; ++j) {
        S s(0);
        for (int64_t c = 0; c < dim; ++c) s += q[(i * heads + h) * dim + c] * k[(j * kv + g) * dim + c];
        s *= shape.scale;
        if (shape.soft_cap > 0) s = double(shape.soft_cap) * std::tanh(s / double(shape.soft_cap));
        scores.push_back(s);
        max = std::max(max, std::real(s));
      }
      S sum(0);
      for (const S& s : scores) sum += std::exp(s - max);
      result.lse[i * heads + h] = max + std::log(sum);
      for (int64_t j = first; j <= last; ++j) {
        const S p = std::exp(scores[j - first] - max) / sum;
        for (int64_t c = 0; c < dim; ++c) result.out[(i * heads + h) * dim + c] += p * v[(j * kv + g) * dim + c];
      }
    }
  }
  return result;
}

struct Inputs {
  TestMatrix q, k, v, dout;
  std::vector<int32_t> starts;

  explicit Inputs(const Case& c, float scale = 1)
      : q(TestMatrix::Random(Total(c), c.shape.num_heads * c.shape.head_dim, 1, scale)),
        k(TestMatrix::Random(Total(c), c.shape.num_kv_heads * c.shape.head_dim, 2, scale, 5)),
        v(TestMatrix::Random(Total(c), c.shape.num_kv_heads * c.shape.head_dim, 3, 1, 1)),
        dout(TestMatrix::Random(Total(c), c.shape.num_heads * c.shape.head_dim, 4, 1, 2)),
        starts(Starts(c.lengths)) {}
  static int64_t Total(const Case& c) { return std::accumulate(c.lengths.begin(), c.lengths.end(), int64_t{0}); }
  ConstInts starts_view() const { return {starts.data(), static_cast<int64_t>(starts.size())}; }
};

struct Outputs {
  TestMatrix out, lse, dq, dk, dv;
  explicit Outputs(const Inputs& in, const AttentionShape& shape)
      : out(in.q.rows(), in.q.cols(), 7),
        lse(in.q.rows(), shape.num_heads, 7, 1),
        dq(in.q.rows(), in.q.cols(), 7),
        dk(in.k.rows(), in.k.cols(), 7),
        dv(in.v.rows(), in.v.cols(), 7) {}
};

Outputs RunAll(const Inputs& in, const AttentionShape& shape) {
  Outputs o(in, shape);
  TestScratch scratch(AttentionScratchBytes(shape, in.q.rows()));
  AttentionForward(in.q.view(), in.k.view(), in.v.view(), in.starts_view(), shape, o.out.view(), o.lse.view(),
                   scratch.view());
  AttentionBackward(in.q.view(), in.k.view(), in.v.view(), o.out.view(), o.lse.view(), in.dout.view(), in.starts_view(),
                    shape, o.dq.view(), o.dk.view(), o.dv.view(), scratch.view());
  EXPECT_TRUE(scratch.GuardIntact());
  for (const TestMatrix* m : {&o.out, &o.lse, &o.dq, &o.dk, &o.dv}) EXPECT_TRUE(m->PaddingIntact());
  return o;
}

// |s| stays below 40 here, so an error of s is at most head_dim * 40 epsilons, and of p the same relative to it.
double Tolerance(const AttentionShape& shape, double magnitude) {
  return kFloatEpsilon * (8 + 2 * shape.head_dim) * std::max(1.0, magnitude);
}

void CheckForward(const Case& c) {
  const Inputs in(c);
  const Outputs o = RunAll(in, c.shape);
  const auto expected = ReferenceForward(in.q.To<double>(), in.k.To<double>(), in.v.To<double>(), in.starts, c.shape);
  ExpectAllNear(o.out.Values(), expected.out, Tolerance(c.shape, MaxAbs(expected.out)), c.name + " out");
  ExpectAllNear(o.lse.Values(), expected.lse, Tolerance(c.shape, MaxAbs(expected.lse)), c.name + " lse");
}

TEST(AttentionTest, ForwardMatchesReference) {
  for (const Case& c : Cases()) CheckForward(c);
  for (const Case& c : LargeCases()) CheckForward(c);
}

TEST(AttentionTest, ForwardMatchesReferenceAtEveryCpuLevel) {
  ForEachCpuLevel([](const std::string& level) {
    Case c{Shape(4, 2, 34, 50, 3.0f), {70, 3}, level};
    CheckForward(c);
  });
}

void CheckBackward(const Case& c) {
  const Inputs in(c);
  const Outputs o = RunAll(in, c.shape);
  const std::vector<double> weights = in.dout.To<double>();
  const std::vector<double> q = in.q.To<double>(), k = in.k.To<double>(), v = in.v.To<double>();
  const auto complex = [](const std::vector<double>& x) { return std::vector<Complex>(x.begin(), x.end()); };
  const auto dq = ComplexStepGradient(
      [&](const std::vector<Complex>& x) {
        return WeightedSum(weights, ReferenceForward(x, complex(k), complex(v), in.starts, c.shape).out);
      },
      q);
  const auto dk = ComplexStepGradient(
      [&](const std::vector<Complex>& x) {
        return WeightedSum(weights, ReferenceForward(complex(q), x, complex(v), in.starts, c.shape).out);
      },
      k);
  const auto dv = ComplexStepGradient(
      [&](const std::vector<Complex>& x) {
        return WeightedSum(weights, ReferenceForward(complex(q), complex(k), x, in.starts, c.shape).out);
      },
      v);
  const double rows = 4 * in.q.rows();
  ExpectAllNear(o.dq.Values(), dq, Tolerance(c.shape, rows), c.name + " dq");
  ExpectAllNear(o.dk.Values(), dk, Tolerance(c.shape, rows), c.name + " dk");
  ExpectAllNear(o.dv.Values(), dv, Tolerance(c.shape, rows), c.name + " dv");
}

TEST(AttentionTest, BackwardMatchesComplexStep) {
  for (const Case& c : Cases()) CheckBackward(c);
}

// The formulas, which the small cases check by complex step, as loops in double.
void ReferenceBackward(const Inputs& in, const AttentionShape& shape, std::vector<double>& dq, std::vector<double>& dk,
                       std::vector<double>& dv) {
  const auto q = in.q.To<double>(), k = in.k.To<double>(), v = in.v.To<double>(), dy = in.dout.To<double>();
  const auto forward = ReferenceForward(q, k, v, in.starts, shape);
  const int64_t heads = shape.num_heads, kv = shape.num_kv_heads, dim = shape.head_dim;
  dq.assign(q.size(), 0), dk.assign(k.size(), 0), dv.assign(v.size(), 0);
  for (int64_t i = 0; i < in.q.rows(); ++i) {
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t a = (i * heads + h) * dim;
      double delta = 0;
      for (int64_t c = 0; c < dim; ++c) delta += dy[a + c] * forward.out[a + c];
      int64_t first = in.starts[i];
      if (shape.window > 0) first = std::max(first, i - shape.window + 1);
      for (int64_t j = first; j <= i; ++j) {
        const int64_t b = (j * kv + h / (heads / kv)) * dim;
        double s = 0, dp = 0;
        for (int64_t c = 0; c < dim; ++c) s += q[a + c] * k[b + c], dp += dy[a + c] * v[b + c];
        s *= shape.scale;
        double slope = shape.scale;
        if (shape.soft_cap > 0) {
          const double t = std::tanh(s / shape.soft_cap);
          s = shape.soft_cap * t, slope *= 1 - t * t;
        }
        const double p = std::exp(s - forward.lse[i * heads + h]), ds = p * (dp - delta) * slope;
        for (int64_t c = 0; c < dim; ++c) {
          dq[a + c] += ds * k[b + c], dk[b + c] += ds * q[a + c], dv[b + c] += p * dy[a + c];
        }
      }
    }
  }
}

TEST(AttentionTest, BackwardMatchesFormulasOverManyTiles) {
  std::vector<Case> cases = LargeCases();
  cases.push_back(Cases().back());
  for (const Case& c : cases) {
    const Inputs in(c);
    const Outputs o = RunAll(in, c.shape);
    std::vector<double> dq, dk, dv;
    ReferenceBackward(in, c.shape, dq, dk, dv);
    ExpectAllNear(o.dq.Values(), dq, Tolerance(c.shape, 4 * MaxAbs(dq)), c.name + " dq");
    ExpectAllNear(o.dk.Values(), dk, Tolerance(c.shape, 4 * MaxAbs(dk)), c.name + " dk");
    ExpectAllNear(o.dv.Values(), dv, Tolerance(c.shape, 4 * MaxAbs(dv)), c.name + " dv");
  }
}

void Round(TestMatrix* m) {
  for (int64_t r = 0; r < m->rows(); ++r) {
    for (int64_t c = 0; c < m->cols(); ++c) m->view().row(r)[c] = BF16ToFloat(FloatToBF16(m->view().row(r)[c]));
  }
}

// Operands that are bf16 already: what is left is the rounding of probabilities and of their gradients, 2^-9 of each.
TEST(AttentionTest, TilesMatchFormulasToTheRoundingOfProbabilities) {
  if (!HasAmx()) GTEST_SKIP() << "this processor has no tiles";
  std::vector<Case> cases = Cases();
  for (const Case& c : LargeCases()) cases.push_back(c);
  for (const Case& c : cases) {
    Inputs in(c);
    for (TestMatrix* m : {&in.q, &in.k, &in.v, &in.dout}) Round(m);
    const Outputs exact = RunAll(in, c.shape), o = RunAll(in, InBF16(c.shape));
    const auto forward = ReferenceForward(in.q.To<double>(), in.k.To<double>(), in.v.To<double>(), in.starts, c.shape);
    ExpectAllNear(o.out.Values(), forward.out, 0x1p-8 * MaxAbs(forward.out), c.name + " out");
    ExpectAllNear(o.lse.Values(), forward.lse, Tolerance(c.shape, MaxAbs(forward.lse)), c.name + " lse");
    std::vector<double> dq, dk, dv;
    ReferenceBackward(in, c.shape, dq, dk, dv);
    ExpectAllNear(o.dq.Values(), dq, 0x1p-7 * MaxAbs(dq), c.name + " dq");
    ExpectAllNear(o.dk.Values(), dk, 0x1p-7 * MaxAbs(dk), c.name + " dk");
    ExpectAllNear(o.dv.Values(), dv, 0x1p-7 * MaxAbs(dv), c.name + " dv");
    if (in.q.rows() > 100) {
      EXPECT_NE(o.dq.Values(), exact.dq.Values()) << c.name << ": tiles were not used";
    }
  }
}

// Row r of `all` has the bits of row r - begin of `alone`.
void ExpectSameRows(const TestMatrix& all, const TestMatrix& alone, int64_t begin, const std::string& what) {
  for (int64_t r = 0; r < alone.rows(); ++r) {
    ASSERT_EQ(std::memcmp(all.view().row(begin + r), alone.view().row(r), alone.cols() * sizeof(float)), 0)
        << what << " row " << r;
  }
}

TestMatrix SubRows(const TestMatrix& all, int64_t begin, int64_t count) {
  TestMatrix part(count, all.cols());
  for (int64_t r = 0; r < count; ++r) std::copy_n(all.view().row(begin + r), all.cols(), part.view().row(r));
  return part;
}

TEST(AttentionTest, PackedSampleHasTheBitsOfTheSampleAlone) {
  for (const AttentionShape& shape : {Shape(14, 2, 64), Shape(4, 4, 34, 50), Shape(3, 1, 16, 0, 2.0f),
                                      InBF16(Shape(14, 2, 64)), InBF16(Shape(4, 4, 34, 50))}) {
    const Case packed{shape, {37, 1, 150, 8, 90}, "packed"};
    const Inputs in(packed);
    const Outputs o = RunAll(in, shape);
    int64_t begin = 0;
    for (const int length : packed.lengths) {
      const Case single{shape, {length}, "alone"};
      Inputs alone(single);
      alone.q = SubRows(in.q, begin, length), alone.k = SubRows(in.k, begin, length);
      alone.v = SubRows(in.v, begin, length), alone.dout = SubRows(in.dout, begin, length);
      const Outputs a = RunAll(alone, shape);
      ExpectSameRows(o.out, a.out, begin, "out");
      ExpectSameRows(o.lse, a.lse, begin, "lse");
      ExpectSameRows(o.dq, a.dq, begin, "dq");
      ExpectSameRows(o.dk, a.dk, begin, "dk");
      ExpectSameRows(o.dv, a.dv, begin, "dv");
      begin += length;
    }
  }
}

TEST(AttentionTest, CacheFormHasTheBitsOfTheWholeSample) {
  for (const AttentionShape& shape :
       {Shape(14, 2, 64), Shape(4, 1, 32, 40), InBF16(Shape(14, 2, 64)), InBF16(Shape(4, 1, 32, 40))}) {
    const Case c{shape, {150}, "cache"};
    const Inputs in(c);
    const Outputs whole = RunAll(in, shape);
    for (const auto& [begin, count] : {std::pair<int64_t, int64_t>{149, 1}, {64, 1}, {20, 70}, {0, 3}}) {
      TestMatrix out(count, in.q.cols()), lse(count, shape.num_heads);
      const std::vector<int32_t> starts(count, 0);
      TestScratch scratch(AttentionScratchBytes(shape, count));
      AttentionForward(in.q.view().Rows(begin, count), in.k.view().Rows(0, begin + count),
                       in.v.view().Rows(0, begin + count), {starts.data(), count}, shape, out.view(), lse.view(),
                       scratch.view());
      EXPECT_TRUE(scratch.GuardIntact());
      ExpectSameRows(whole.out, out, begin, "out");
      ExpectSameRows(whole.lse, lse, begin, "lse");
    }
  }
}

TEST(AttentionTest, LargeScoresStayFinite) {
  for (const AttentionShape& shape : {Shape(2, 1, 64), InBF16(Shape(2, 1, 64))}) {
    const Case c{shape, {100}, "large"};
    const Inputs in(c, 100);  // scores of +-1e5
    const Outputs o = RunAll(in, c.shape);
    for (const TestMatrix* m : {&o.out, &o.lse, &o.dq, &o.dk, &o.dv}) {
      for (const float x : m->Values()) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

TEST(AttentionTest, NoRows) {
  const AttentionShape shape = Shape(2, 1, 8);
  TestMatrix none(0, 16), kv(0, 8), lse(0, 2);
  TestScratch scratch(AttentionScratchBytes(shape, 0));
  AttentionForward(none.view(), kv.view(), kv.view(), {}, shape, none.view(), lse.view(), scratch.view());
  AttentionBackward(none.view(), kv.view(), kv.view(), none.view(), lse.view(), none.view(), {}, shape, none.view(),
                    kv.view(), kv.view(), scratch.view());
  EXPECT_TRUE(none.PaddingIntact());
  EXPECT_TRUE(scratch.GuardIntact());
}

TEST(AttentionTest, SameBitsForAnyThreadCount) {
  std::vector<Case> cases = LargeCases();
  for (const Case& c : LargeCases()) cases.push_back({InBF16(c.shape), c.lengths, c.name + " in bf16"});
  for (const Case& c : cases) {
    ExpectSameBitsForAnyThreadCount([&] {
      const Outputs o = RunAll(Inputs(c), c.shape);
      std::vector<float> all;
      for (const TestMatrix* m : {&o.out, &o.lse, &o.dq, &o.dk, &o.dv}) all = Concatenate(all, m->Values());
      return all;
    });
  }
}

TEST(AttentionTest, ScratchDoesNotGrowWithTheSquareOfTokens) {
  const AttentionShape shape = Shape(14, 2, 64);
  const int64_t short_bytes = AttentionScratchBytes(shape, 1024), long_bytes = AttentionScratchBytes(shape, 65536);
  EXPECT_LE(long_bytes - short_bytes, (8 + 4 * shape.num_heads) * (65536 - 1024));
  EXPECT_LE(short_bytes, NumThreads() * (int64_t{1} << 20));
}

}  // namespace
}  // namespace thimble
