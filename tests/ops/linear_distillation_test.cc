// Distillation of a head against a dense reference in double, gradients by complex step, same bits, memory.
#include "ops/linear_distillation.h"

#include "ops/head_rows.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

using Options = LinearDistillationOptions;
using Direction = DivergenceDirection;

constexpr float kGradScale = 0.125f;
constexpr float kInitial = 1.0f / 1024;  // of dhead, which is accumulated

struct Case {
  int rows, vocab, dim, teacher_dim;
  Options options;
  std::string name;
  float scale = 1;  // of the hidden states
};

Options Make(Direction direction, float weight, float temperature = 1, float cap = 0, float teacher_cap = 0) {
  Options options;
  options.direction = direction;
  options.weight = weight;
  options.temperature = temperature;
  options.soft_cap = cap;
  options.teacher_soft_cap = teacher_cap;
  return options;
}

std::vector<Case> SmallCases() {
  return {{1, 2, 1, 1, Make(Direction::kForward, 1), "smallest"},
          {5, 77, 7, 9, Make(Direction::kForward, 1), "forward"},
          {5, 77, 7, 9, Make(Direction::kReverse, 1), "reverse"},
          {6, 50, 8, 5, Make(Direction::kSymmetric, 0.7f, 1.5f), "symmetric, tempered"},
          {9, 130, 12, 7, Make(Direction::kReverse, 0.5f, 2, 5, 3), "reverse, tempered, capped"},
          {7, 64, 16, 16, Make(Direction::kForward, 0.25f, 0.5f, 4), "forward, cold, capped"},
          {7, 64, 6, 6, Make(Direction::kForward, 0), "cross-entropy alone"}};
}

std::vector<Case> LargeCases() {
  return {{150, 700, 300, 128, Make(Direction::kForward, 0.9f), "tiles", 0.1f},
          {530, 333, 33, 40, Make(Direction::kSymmetric, 0.5f, 2), "many rows", 0.3f},
          {97, 200, 64, 64, Make(Direction::kReverse, 1, 1, 2, 4), "caps", 0.2f}};
}

struct Inputs {
  TestMatrix h, teacher_h;
  std::vector<float> head, teacher_head;
  std::vector<int32_t> targets;
  int64_t vocab;

  explicit Inputs(const Case& c)
      : h(TestMatrix::Random(c.rows, c.dim, 1, c.scale)),
        teacher_h(TestMatrix::Random(c.rows, c.teacher_dim, 3, c.scale)),
        head(TestMatrix::Random(c.vocab, c.dim, 2).Values()),
        teacher_head(TestMatrix::Random(c.vocab, c.teacher_dim, 4).Values()),
        targets(c.rows),
        vocab(c.vocab) {
    for (int t = 0; t < c.rows; ++t) targets[t] = static_cast<int32_t>((t * 7919LL + c.vocab - 1) % c.vocab);
    for (int t = 3; t < c.rows; t += 4) targets[t] = -100;
  }
  DistillationInputs view() const {
    return {h.view(),
            WeightView(head.data(), vocab, h.cols()),
            teacher_h.view(),
            WeightView(teacher_head.data(), vocab, teacher_h.cols()),
            {targets.data(), static_cast<int64_t>(targets.size())}};
  }
};

// Logits of a row, capped, divided by the temperature, and minus their lse.
template <typename S>
std::vector<S> LogSoftmax(const S* h, const std::vector<S>& head, int64_t dim, double cap, double temperature) {
  std::vector<S> z(head.size() / dim);
  double max = -1e300;
  for (size_t v = 0; v < z.size(); ++v) {
    z[v] = S(0);
    for (int64_t i = 0; i < dim; ++i) z[v] += h[i] * head[v * dim + i];
    if (cap > 0) z[v] = cap * std::tanh(z[v] / cap);
    z[v] /= temperature;
    max = std::max(max, std::real(z[v]));
  }
  S sum(0);
  for (const S& x : z) sum += std::exp(x - max);
  const S lse = max + std::log(sum);
  for (S& x : z) x -= lse;
  return z;
}

template <typename S>
struct Losses {
  std::vector<S> loss, divergence;
};

template <typename S>
Losses<S> ReferenceLosses(const Inputs& in, const std::vector<S>& h, const std::vector<S>& head, const Options& o) {
  const int64_t rows = in.targets.size(), dim = in.h.cols(), teacher_dim = in.teacher_h.cols();
  const auto teacher_h = in.teacher_h.To<S>();
  const std::vector<S> teacher_head(in.teacher_head.begin(), in.teacher_head.end());
  Losses<S> result{std::vector<S>(rows), std::vector<S>(rows)};
  const double share = o.direction == Direction::kForward ? 1 : o.direction == Direction::kReverse ? 0 : 0.5;
  for (int64_t t = 0; t < rows; ++t) {
    if (in.targets[t] == o.ignore_index) continue;
    const auto plain = LogSoftmax<S>(&h[t * dim], head, dim, o.soft_cap, 1);
    const auto q = LogSoftmax<S>(&h[t * dim], head, dim, o.soft_cap, o.temperature);
    const auto p =
        LogSoftmax<S>(&teacher_h[t * teacher_dim], teacher_head, teacher_dim, o.teacher_soft_cap, o.temperature);
    for (size_t v = 0; v < q.size(); ++v) {
      result.divergence[t] += share * std::exp(p[v]) * (p[v] - q[v]) + (1 - share) * std::exp(q[v]) * (q[v] - p[v]);
    }
    const double w = o.weight, square = double(o.temperature) * o.temperature;
    result.loss[t] = -(1 - w) * plain[in.targets[t]] + w * square * result.divergence[t];
  }
  return result;
}

struct Outputs {
  TestMatrix loss, divergence, stats, dh, dhead;
};

Outputs RunAll(const Inputs& in, const DistillationInputs& view, const Options& options) {
  const int64_t rows = in.h.rows(), dim = in.h.cols();
  Outputs o{TestMatrix(1, rows, 7), TestMatrix(1, rows, 7), TestMatrix(rows, kDistillationStats, 7),
            TestMatrix(rows, dim, 7), TestMatrix(in.vocab, dim, kInitial)};
  TestScratch scratch(LinearDistillationScratchBytes(view.head, view.teacher_head));
  LinearDistillationForward(view, options, o.loss.vector(), o.divergence.vector(), o.stats.view(), scratch.view());
  LinearDistillationBackward(view, o.stats.view(), kGradScale, options, o.dh.view(), o.dhead.view(), scratch.view());
  EXPECT_TRUE(scratch.GuardIntact());
  for (const TestMatrix* m : {&o.loss, &o.divergence, &o.stats, &o.dh, &o.dhead}) EXPECT_TRUE(m->PaddingIntact());
  return o;
}
Outputs RunAll(const Inputs& in, const Options& options) { return RunAll(in, in.view(), options); }

double RelativeError(const std::vector<float>& actual, const std::vector<double>& expected, double added = 0) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual[i] - added - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

// Formulas of the gradients in double; the small cases check them by complex step.
std::pair<std::vector<double>, std::vector<double>> ReferenceGradients(const Inputs& in, const Options& o) {
  const auto h = in.h.To<double>(), teacher_h = in.teacher_h.To<double>();
  const std::vector<double> head(in.head.begin(), in.head.end());
  const std::vector<double> teacher_head(in.teacher_head.begin(), in.teacher_head.end());
  const int64_t dim = in.h.cols(), teacher_dim = in.teacher_h.cols();
  std::vector<double> dh(h.size()), dhead(head.size());
  const double share = o.direction == Direction::kForward ? 1 : o.direction == Direction::kReverse ? 0 : 0.5;
  const double weight = o.weight;
  for (size_t t = 0; t < in.targets.size(); ++t) {
    if (in.targets[t] == o.ignore_index) continue;
    const auto plain = LogSoftmax<double>(&h[t * dim], head, dim, o.soft_cap, 1);
    const auto q = LogSoftmax<double>(&h[t * dim], head, dim, o.soft_cap, o.temperature);
    const auto p =
        LogSoftmax<double>(&teacher_h[t * teacher_dim], teacher_head, teacher_dim, o.teacher_soft_cap, o.temperature);
    double reverse = 0;
    for (size_t v = 0; v < q.size(); ++v) reverse += std::exp(q[v]) * (q[v] - p[v]);
    for (size_t v = 0; v < q.size(); ++v) {
      const double own = std::exp(plain[v]) - (static_cast<int64_t>(v) == in.targets[t] ? 1 : 0);
      const double kl =
          share * (std::exp(q[v]) - std::exp(p[v])) + (1 - share) * std::exp(q[v]) * (q[v] - p[v] - reverse);
      double dz = kGradScale * ((1 - weight) * own + weight * o.temperature * kl);
      if (o.soft_cap > 0) {
        double z = 0;
        for (int64_t i = 0; i < dim; ++i) z += h[t * dim + i] * head[v * dim + i];
        dz *= 1 - std::pow(std::tanh(z / o.soft_cap), 2);
      }
      for (int64_t i = 0; i < dim; ++i) {
        dh[t * dim + i] += dz * head[v * dim + i];
        dhead[v * dim + i] += dz * h[t * dim + i];
      }
    }
  }
  return {dh, dhead};
}

void CheckCase(const Case& c, const std::string& name) {
  const Inputs in(c);
  const Outputs o = RunAll(in, c.options);
  const std::vector<double> head(in.head.begin(), in.head.end());
  const auto expected = ReferenceLosses<double>(in, in.h.To<double>(), head, c.options);
  ExpectAllNear(o.divergence.Values(), expected.divergence, 2e-5, name + " divergence");
  ExpectAllNear(o.loss.Values(), expected.loss, 1e-4, name + " loss");
  const auto [dh, dhead] = ReferenceGradients(in, c.options);
  EXPECT_LE(RelativeError(o.dh.Values(), dh), 2e-5) << name;
  EXPECT_LE(RelativeError(o.dhead.Values(), dhead, kInitial), 2e-5) << name;
}

TEST(LinearDistillationTest, LossAndGradientsMatchTheReference) {
  for (const auto& cases : {SmallCases(), LargeCases()}) {
    for (const Case& c : cases) CheckCase(c, c.name);
  }
}

TEST(LinearDistillationTest, GradientsMatchComplexStep) {
  for (const Case& c : SmallCases()) {
    const Inputs in(c);
    const auto sum = [&](const std::vector<Complex>& h, const std::vector<Complex>& head) {
      Complex total(0);
      for (const Complex& loss : ReferenceLosses<Complex>(in, h, head, c.options).loss) total += loss;
      return total * double(kGradScale);
    };
    const auto h = in.h.To<Complex>();
    const std::vector<Complex> head(in.head.begin(), in.head.end());
    const auto dh = ComplexStepGradient([&](const auto& x) { return sum(x, head); }, in.h.To<double>());
    const auto dhead = ComplexStepGradient([&](const auto& x) { return sum(h, x); },
                                           std::vector<double>(in.head.begin(), in.head.end()));
    const Outputs o = RunAll(in, c.options);
    EXPECT_LE(RelativeError(o.dh.Values(), dh), 5e-6) << c.name;
    EXPECT_LE(RelativeError(o.dhead.Values(), dhead, kInitial), 2e-5) << c.name;
    const auto [formula_dh, formula_dhead] = ReferenceGradients(in, c.options);
    double worst = 0;
    for (size_t i = 0; i < dh.size(); ++i) worst = std::max(worst, std::abs(dh[i] - formula_dh[i]));
    for (size_t i = 0; i < dhead.size(); ++i) worst = std::max(worst, std::abs(dhead[i] - formula_dhead[i]));
    EXPECT_LE(worst, 1e-12) << c.name;
  }
}

TEST(LinearDistillationTest, EveryCpuLevel) {
  ForEachCpuLevel([](const std::string& level) { CheckCase(LargeCases()[1], level); });
}

TEST(LinearDistillationTest, ATeacherThatIsTheStudentHasNothingToSay) {
  for (const Direction direction : {Direction::kForward, Direction::kReverse, Direction::kSymmetric}) {
    Inputs in({70, 200, 20, 20, Make(direction, 1, 2), ""});
    in.teacher_h = in.h;
    in.teacher_head = in.head;
    const Outputs o = RunAll(in, Make(direction, 1, 2));
    for (const TestMatrix* m : {&o.loss, &o.divergence}) {
      for (const float x : m->Values()) ASSERT_EQ(x, 0);
    }
    for (const float x : o.dh.Values()) ASSERT_NEAR(x, 0, 1e-6);
  }
}

TEST(LinearDistillationTest, IgnoredRowsAreZero) {
  Inputs in({20, 90, 15, 8, Make(Direction::kForward, 0.5f), ""});
  std::fill(in.targets.begin(), in.targets.end(), -100);
  const Outputs o = RunAll(in, Make(Direction::kForward, 0.5f));
  for (const TestMatrix* m : {&o.loss, &o.divergence, &o.stats, &o.dh}) {
    for (const float x : m->Values()) ASSERT_EQ(x, 0);
  }
  for (const float x : o.dhead.Values()) ASSERT_EQ(x, kInitial);
}

TEST(LinearDistillationTest, FrozenHeadsNeedNoGradient) {
  const Case c = LargeCases()[0];
  const Inputs in(c);
  const Outputs with = RunAll(in, c.options);
  TestMatrix dh(c.rows, c.dim, 7);
  TestScratch scratch(LinearDistillationScratchBytes(in.view().head, in.view().teacher_head));
  LinearDistillationBackward(in.view(), with.stats.view(), kGradScale, c.options, dh.view(), Matrix(), scratch.view());
  EXPECT_EQ(dh.Values(), with.dh.Values());
}

TEST(LinearDistillationTest, BF16IsClose) {
  Case c = LargeCases()[0];
  const Inputs in(c);
  const Outputs exact = RunAll(in, c.options);
  c.options.compute = Compute::kBF16;
  const Outputs rounded = RunAll(in, c.options);
  const auto dh = exact.dh.To<double>(), dhead = exact.dhead.To<double>();
  EXPECT_GT(RelativeError(rounded.dh.Values(), dh), 1e-6);
  EXPECT_LE(RelativeError(rounded.dh.Values(), dh), 2e-2);
  EXPECT_LE(RelativeError(rounded.dhead.Values(), dhead), 2e-2);
}

TEST(LinearDistillationTest, SameBitsForAnyThreadCountAndAnyBatch) {
  const Case c = LargeCases()[1];
  const Inputs in(c);
  ExpectSameBitsForAnyThreadCount([&] {
    const Outputs o = RunAll(in, c.options);
    return Concatenate(Concatenate(o.loss.Values(), o.dh.Values()), o.dhead.Values());
  });
  const Outputs all = RunAll(in, c.options);
  Case one = c;
  one.rows = 9;
  Inputs few(one);
  for (int t = 0; t < 9; ++t) {
    std::copy_n(in.h.view().row(100 + t), c.dim, few.h.view().row(t));
    std::copy_n(in.teacher_h.view().row(100 + t), c.teacher_dim, few.teacher_h.view().row(t));
    few.targets[t] = in.targets[100 + t];
  }
  const Outputs part = RunAll(few, c.options);
  for (int t = 0; t < 9; ++t) {
    EXPECT_EQ(part.loss.Values()[t], all.loss.Values()[100 + t]);
    for (int i = 0; i < c.dim; ++i) ASSERT_EQ(part.dh(t, i), all.dh(100 + t, i));
  }
}

TEST(LinearDistillationTest, ScratchIsSmallWhateverTheVocabulary) {
  const ScopedThreads threads(8);
  for (const int64_t dim : {64, 896, 1152, 4096, 6144}) {
    const WeightView small(static_cast<const float*>(nullptr), 1000, dim);
    const WeightView large(static_cast<const float*>(nullptr), 262144, dim);
    EXPECT_EQ(LinearDistillationScratchBytes(large, large), LinearDistillationScratchBytes(small, small));
    EXPECT_LE(LinearDistillationScratchBytes(large, large), 4 << 20) << dim;
  }
  // Logits of these rows alone would be 24 MiB; the guard behind the scratch stays intact.
  CheckCase({12, 262144, 8, 4, Make(Direction::kSymmetric, 0.5f), ""}, "large vocabulary");
}

}  // namespace
}  // namespace thimble
