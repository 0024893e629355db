// Cut cross-entropy against a dense reference in double, gradients by complex step, filtering within its bounds,
// memory, extreme logits, every head format that needs decoding, same bits.
#include "ops/linear_cross_entropy.h"

#include <cstring>

#include "ops/cpu_level.h"
#include "ops/head_rows.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"
#include "tests/ops/linear_cross_entropy_reference.h"

namespace thimble {
namespace {

using Options = LinearCrossEntropyOptions;
using Case = CrossEntropyCase;
using Inputs = CrossEntropyInputs;

constexpr float kGradScale = 0.125f;
constexpr float kInitial = 1.0f / 1024;  // of dhead, which is accumulated

struct Outputs {
  TestMatrix loss, lse, dh, dhead, fused_loss, fused_lse, fused_dh;
};

// Forward, backward (dhead starts at kInitial) and the fused form.
Outputs RunAll(const Inputs& in, const WeightView& head, const Options& options) {
  const int64_t rows = in.h.rows(), dim = in.h.cols();
  Outputs o{
      TestMatrix(1, rows, 7), TestMatrix(1, rows, 7), TestMatrix(rows, dim, 7), TestMatrix(in.vocab, dim, kInitial),
      TestMatrix(1, rows, 7), TestMatrix(1, rows, 7), TestMatrix(rows, dim, 7)};
  TestScratch scratch(LinearCrossEntropyScratchBytes(rows, dim, options, HeadRows::FetchedRowBytes(head)));
  LinearCrossEntropyForward(in.h.view(), head, in.targets_view(), options, o.loss.vector(), o.lse.vector(),
                            scratch.view());
  LinearCrossEntropyBackward(in.h.view(), head, in.targets_view(), o.lse.vector(), kGradScale, options, o.dh.view(),
                             o.dhead.view(), scratch.view());
  LinearCrossEntropyFused(in.h.view(), head, in.targets_view(), kGradScale, options, o.fused_loss.vector(),
                          o.fused_lse.vector(), o.fused_dh.view(), scratch.view());
  EXPECT_TRUE(scratch.GuardIntact());
  for (const TestMatrix* m : {&o.loss, &o.lse, &o.dh, &o.dhead, &o.fused_loss, &o.fused_lse, &o.fused_dh}) {
    EXPECT_TRUE(m->PaddingIntact());
  }
  return o;
}
Outputs RunAll(const Inputs& in, const Options& options) { return RunAll(in, in.head_view(), options); }

double RelativeError(const std::vector<float>& actual, const std::vector<double>& expected, double added = 0) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += std::pow(actual[i] - added - expected[i], 2);
    norm += expected[i] * expected[i];
  }
  return std::sqrt(difference / std::max(norm, 1e-300));
}

void CheckLoss(const Outputs& o, const Inputs& in, const Options& options, const std::string& name,
               double tolerance = 1e-5) {
  std::vector<double> lse;
  const auto loss = ReferenceLoss(in.h.To<double>(), in.head_double(), in.targets, options, &lse);
  for (const auto& [actual_loss, actual_lse] : {std::pair{&o.loss, &o.lse}, std::pair{&o.fused_loss, &o.fused_lse}}) {
    ExpectAllNear(actual_loss->Values(), loss, tolerance, name + " loss");
    ExpectAllNear(actual_lse->Values(), lse, tolerance, name + " lse");
  }
}

TEST(LinearCrossEntropyTest, LossMatchesReference) {
  for (const auto& cases : {Cases(), LargeCases()}) {
    for (const Case& c : cases) {
      const Inputs in(c);
      CheckLoss(RunAll(in, c.options), in, c.options, c.name);
    }
  }
}

TEST(LinearCrossEntropyTest, GradientsMatchComplexStep) {
  for (const Case& c : Cases()) {
    const Inputs in(c);
    const Outputs o = RunAll(in, c.options);
    const auto sum = [&](const std::vector<Complex>& h, const std::vector<Complex>& head) {
      Complex total(0);
      for (const Complex& loss : ReferenceLoss(h, head, in.targets, c.options)) total += loss;
      return total * double(kGradScale);
    };
    const auto h = in.h.To<Complex>();
    const std::vector<Complex> head(in.head.begin(), in.head.end());
    const auto dh = ComplexStepGradient([&](const auto& x) { return sum(x, head); }, in.h.To<double>());
    const auto dhead = ComplexStepGradient([&](const auto& x) { return sum(h, x); }, in.head_double());
    EXPECT_LE(RelativeError(o.dh.Values(), dh), 2e-6) << c.name;
    EXPECT_LE(RelativeError(o.fused_dh.Values(), dh), 2e-6) << c.name;
    EXPECT_LE(RelativeError(o.dhead.Values(), dhead, kInitial), 1e-5) << c.name;
    EXPECT_LE(RelativeError(o.dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), 2e-6) << c.name;
  }
}

void CheckLarge(const Case& c, const std::string& name) {
  const Inputs in(c);
  const Outputs o = RunAll(in, c.options);
  CheckLoss(o, in, c.options, name);
  const CrossEntropyGradients g = ReferenceGradients(in, c.options, kGradScale);
  EXPECT_LE(RelativeError(o.dh.Values(), g.dh), 1e-5) << name;
  EXPECT_LE(RelativeError(o.fused_dh.Values(), g.dh), 1e-5) << name;
  EXPECT_LE(RelativeError(o.dhead.Values(), g.dhead, kInitial), 1e-5) << name;
}

TEST(LinearCrossEntropyTest, GradientsMatchFormulasOverManyTiles) {
  for (const Case& c : LargeCases()) CheckLarge(c, c.name);
}

TEST(LinearCrossEntropyTest, EveryCpuLevel) {
  ForEachCpuLevel([](const std::string& level) { CheckLarge(LargeCases()[2], level); });
}

TEST(LinearCrossEntropyTest, IgnoredRowsAreZeroAndCostNothingElse) {
  const Case c{20, 90, 15, MakeOptions(0, 0.1f, 0.01f), "ignored"};
  Inputs in(c);
  std::fill(in.targets.begin(), in.targets.end(), -100);
  Outputs o = RunAll(in, c.options);
  for (const TestMatrix* m : {&o.loss, &o.lse, &o.dh, &o.fused_loss, &o.fused_lse, &o.fused_dh}) {
    for (const float x : m->Values()) ASSERT_EQ(x, 0);
  }
  for (const float x : o.dhead.Values()) ASSERT_EQ(x, kInitial);
  // NaN in an ignored row reaches nothing.
  in = Inputs(c);
  for (int i = 0; i < c.dim; ++i) in.h(3, i) = std::nanf("");
  o = RunAll(in, c.options);
  for (const TestMatrix* m : {&o.loss, &o.lse, &o.dh, &o.dhead, &o.fused_loss, &o.fused_dh}) {
    for (const float x : m->Values()) ASSERT_TRUE(std::isfinite(x));
  }
  for (int i = 0; i < c.dim; ++i) EXPECT_EQ(o.dh(3, i), 0);
}

TEST(LinearCrossEntropyTest, OtherIgnoreIndexAndNoRows) {
  Case c{4, 30, 5, {}, "ignore"};
  c.options.ignore_index = 2;
  Inputs in(c);
  in.targets = {2, 1, 2, 29};
  const Outputs o = RunAll(in, c.options);
  EXPECT_EQ(o.loss(0, 0), 0);
  EXPECT_GT(o.loss(0, 1), 0);
  const Case none{0, 30, 5, {}, "none"};
  EXPECT_TRUE(RunAll(Inputs(none), {}).loss.Values().empty());
}

TEST(LinearCrossEntropyTest, LogitsOfTenThousandDoNotOverflow) {
  const Case c{13, 300, 40, {}, "extreme"};
  for (const float sign : {1.0f, -1.0f}) {
    Inputs in(c);
    for (int t = 0; t < c.rows; ++t) {
      for (int i = 0; i < c.dim; ++i) in.h(t, i) = i == 0 ? 1 : 0;
    }
    for (int v = 0; v < c.vocab; ++v) in.head[v * c.dim] = sign * (v % 2 == 0 ? 1e4f : -1e4f);
    const Outputs o = RunAll(in, c.options);
    const double rounding = 2e4 * kFloatEpsilon;  // of a float near the loss
    CheckLoss(o, in, c.options, "extreme", rounding);
    EXPECT_LE(RelativeError(o.dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), rounding);
    EXPECT_LE(RelativeError(o.fused_dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), rounding);
    for (const TestMatrix* m : {&o.dh, &o.dhead, &o.fused_dh}) {
      for (const float x : m->Values()) ASSERT_TRUE(std::isfinite(x));
    }
  }
}

// Hidden states along their target's head row: targets are likely, so much is filtered.
Inputs LearnedInputs(const Case& c) {
  Inputs in(c);
  for (int t = 0; t < c.rows; ++t) {
    const int32_t target = in.targets[t] < 0 ? 0 : in.targets[t];
    for (int i = 0; i < c.dim; ++i) in.h(t, i) = (t % 2 == 0 ? 0.9f : 0.25f) * in.head[target * c.dim + i];
  }
  return in;
}

TEST(LinearCrossEntropyTest, FilterStaysWithinItsBounds) {
  constexpr float kThreshold = 1.0f / 4096;
  for (Case c : {Case{60, 400, 32, {}, "plain"}, Case{60, 400, 32, MakeOptions(0, 0, 0.01f), "z-loss"},
                 Case{60, 400, 32, MakeOptions(0, 0.1f, 0), "smoothing"},
                 Case{60, 400, 32, MakeOptions(0, 0.1f, 0.01f), "smoothing and z-loss"},
                 Case{60, 400, 32, MakeOptions(20, 0, 0.01f), "soft cap"},
                 Case{60, 400, 32, MakeOptions(20, 0.1f, 0), "soft cap and smoothing"}}) {
    const Inputs in = LearnedInputs(c);
    const CrossEntropyGradients exact = ReferenceGradients(in, c.options, kGradScale);
    const Outputs unfiltered = RunAll(in, c.options);
    c.options.filter_threshold = kThreshold;
    const Outputs o = RunAll(in, c.options);
    std::vector<double> column_sum(c.dim), row_sum(c.dim);
    for (int v = 0; v < c.vocab; ++v) {
      for (int i = 0; i < c.dim; ++i) column_sum[i] += std::abs(in.head[v * c.dim + i]);
    }
    for (int t = 0; t < c.rows; ++t) {
      for (int i = 0; i < c.dim; ++i) row_sum[i] += std::abs(in.h(t, i));
    }
    // With z-loss a skipped S is below the threshold twice: in S - T and in S |e| / |d|.
    const double bound = (c.options.z_loss > 0 ? 2 : 1) * kGradScale * kThreshold;
    bool differs = false;
    for (int i = 0; i < c.dim; ++i) {
      for (int t = 0; t < c.rows; ++t) {
        if (in.targets[t] < 0) continue;
        ASSERT_LE(std::abs(o.dh(t, i) - exact.dh[t * c.dim + i]), bound * column_sum[i] + 1e-5) << c.name;
        differs |= o.dh(t, i) != unfiltered.dh(t, i);
        ASSERT_LE(std::abs(o.fused_dh(t, i) - exact.dh[t * c.dim + i]), bound * column_sum[i] + 1e-5) << c.name;
      }
      for (int v = 0; v < c.vocab; ++v) {
        ASSERT_LE(std::abs(o.dhead(v, i) - kInitial - exact.dhead[v * c.dim + i]), bound * row_sum[i] + 1e-5) << c.name;
      }
    }
    EXPECT_EQ(differs, c.name != "soft cap and smoothing") << c.name;
    EXPECT_EQ(o.loss.Values(), unfiltered.loss.Values());
  }
}

// With every token learned, S - T is tiny everywhere and the gradient is that of the z-loss alone.
TEST(LinearCrossEntropyTest, FilterKeepsTheGradientOfZLoss) {
  Case c{8, 100, 16, MakeOptions(0, 0, 0.1f, 1.0f / 4096), "learned"};
  Inputs in = LearnedInputs(c);
  for (int t = 0; t < c.rows; ++t) {
    for (int i = 0; i < c.dim; ++i) in.h(t, i) = 4 * in.head[std::max(in.targets[t], 0) * c.dim + i];
  }
  const Outputs o = RunAll(in, c.options);
  EXPECT_LE(RelativeError(o.dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), 1e-5);
  EXPECT_LE(RelativeError(o.fused_dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), 1e-5);
}

TEST(LinearCrossEntropyTest, BF16HeadHasTheBitsOfItsDecodedValues) {
  const Case c{40, 211, 33, {}, "bf16"};
  Inputs in(c);
  std::vector<uint16_t> codes(in.head.size());
  for (size_t i = 0; i < codes.size(); ++i) {
    codes[i] = FloatToBF16(in.head[i]);
    in.head[i] = BF16ToFloat(codes[i]);
  }
  WeightView head = in.head_view();
  head.format = Format::kBF16;
  head.data = codes.data();
  const Outputs a = RunAll(in, head, c.options), b = RunAll(in, c.options);
  EXPECT_EQ(a.loss.Values(), b.loss.Values());
  EXPECT_EQ(a.dh.Values(), b.dh.Values());
  EXPECT_EQ(a.fused_dh.Values(), b.fused_dh.Values());
  EXPECT_EQ(a.dhead.Values(), b.dhead.Values());
}

// Rounding the operands beforehand must give the same logits; the gradients round P too, hence a tolerance.
TEST(LinearCrossEntropyTest, ComputeInBF16RoundsBothOperands) {
  const Case c{40, 211, 300, {}, "bf16", 0.1f};
  Inputs in(c);
  Options bf16 = c.options;
  bf16.compute = Compute::kBF16;
  const bool amx = HasAmx();
  const Outputs on_tiles = RunAll(in, bf16), exact = RunAll(in, c.options);
  AllowAmxForTest(false);
  const Outputs rounded_inside = RunAll(in, bf16);
  AllowAmxForTest(amx);
  for (float& x : in.head) x = BF16ToFloat(FloatToBF16(x));
  for (int t = 0; t < c.rows; ++t) {
    for (int i = 0; i < c.dim; ++i) in.h(t, i) = BF16ToFloat(FloatToBF16(in.h(t, i)));
  }
  EXPECT_EQ(rounded_inside.loss.Values(), RunAll(in, c.options).loss.Values());
  EXPECT_NE(rounded_inside.loss.Values(), exact.loss.Values());
  // Tiles sum in another order, where there are any.
  const std::vector<float> losses = rounded_inside.loss.Values();
  EXPECT_LE(RelativeError(on_tiles.loss.Values(), std::vector<double>(losses.begin(), losses.end())), 1e-6);
  EXPECT_EQ(on_tiles.loss.Values() != losses, amx);
  const CrossEntropyGradients g = ReferenceGradients(in, c.options, kGradScale);
  for (const Outputs* o : {&rounded_inside, &on_tiles}) {
    EXPECT_LE(RelativeError(o->dh.Values(), g.dh), 1.0 / 256);
    EXPECT_LE(RelativeError(o->fused_dh.Values(), g.dh), 1.0 / 256);
    EXPECT_LE(RelativeError(o->dhead.Values(), g.dhead, kInitial), 1.0 / 256);
  }
}

// A head that is somewhere else, read in ranges of bytes.
class ElsewhereReader : public WeightReader {
 public:
  explicit ElsewhereReader(const void* bytes) : bytes_(static_cast<const char*>(bytes)) {}
  void Read(int64_t offset, int64_t bytes, void* to) const override { std::memcpy(to, bytes_ + offset, bytes); }
  int64_t Begin(int64_t offset, int64_t bytes, void* to) override {
    EXPECT_EQ(pending_, 0) << "one tile ahead";
    ++pending_;
    Read(offset, bytes, to);
    return ++tickets_;
  }
  void Wait(int64_t ticket) override {
    EXPECT_EQ(ticket, tickets_);
    --pending_;
  }
  int64_t pending_ = 0, tickets_ = 0;

 private:
  const char* bytes_;
};

TEST(LinearCrossEntropyTest, HeadBehindAReaderGivesTheSameBits) {
  for (const Case& c : LargeCases()) {
    const Inputs in(c);
    ElsewhereReader reader(in.head.data());
    WeightView elsewhere = in.head_view();
    elsewhere.data = nullptr;
    elsewhere.reader = &reader;
    const Outputs here = RunAll(in, c.options), there = RunAll(in, elsewhere, c.options);
    EXPECT_EQ(there.loss.Values(), here.loss.Values()) << c.name;
    EXPECT_EQ(there.dh.Values(), here.dh.Values()) << c.name;
    EXPECT_EQ(there.fused_dh.Values(), here.fused_dh.Values()) << c.name;
    EXPECT_EQ(reader.pending_, 0) << c.name;
    EXPECT_GT(reader.tickets_, 0) << c.name;
  }
}

TEST(LinearCrossEntropyTest, SameBitsForAnyThreadCount) {
  std::vector<Case> cases = LargeCases();
  cases.push_back({150, 700, 64, MakeOptions(0, 0.1f, 0.01f, 1.0f / 4096), "filter", 0.3f});
  cases.push_back({150, 700, 64, MakeOptions(0, 0, 0, 1.0f / 4096), "filter", 0.3f});
  cases.push_back({150, 700, 600, {}, "bf16", 0.1f});
  cases.back().options.compute = Compute::kBF16;
  for (const Case& c : cases) {
    const Inputs in(c);
    ExpectSameBitsForAnyThreadCount([&] {
      const Outputs o = RunAll(in, c.options);
      std::vector<float> all;
      for (const TestMatrix* m : {&o.loss, &o.lse, &o.dh, &o.dhead, &o.fused_loss, &o.fused_lse, &o.fused_dh}) {
        all = Concatenate(all, m->Values());
      }
      return all;
    });
  }
}

TEST(LinearCrossEntropyTest, ARowHasTheSameBitsInAnyBatch) {
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    Case c{150, 300, 64, MakeOptions(0, 0, 0.01f), "batch", 0.3f};
    c.options.compute = compute;
    const Inputs in(c);
    const Outputs all = RunAll(in, c.options);
    Inputs one(Case{1, c.vocab, c.dim, c.options, "one"});
    std::copy_n(in.h.view().row(120), c.dim, one.h.view().row(0));
    one.targets[0] = in.targets[120];
    const Outputs alone = RunAll(one, c.options);
    EXPECT_EQ(alone.loss(0, 0), all.loss(0, 120));
    for (int i = 0; i < c.dim; ++i) {
      EXPECT_EQ(alone.dh(0, i), all.dh(120, i));
      EXPECT_EQ(alone.fused_dh(0, i), all.fused_dh(120, i));
    }
  }
}

TEST(LinearCrossEntropyTest, ForwardAndFusedAgreeBitwise) {
  const Case c{100, 500, 48, MakeOptions(0, 0, 0.01f), "agree"};
  const Outputs o = RunAll(Inputs(c), c.options);
  EXPECT_EQ(o.loss.Values(), o.fused_loss.Values());
  EXPECT_EQ(o.lse.Values(), o.fused_lse.Values());
}

// Scratch and saved vectors (loss, lse) within 2 MiB + 16 bytes a token; the guard behind the scratch is checked by a
// run at both vocabularies, and the size has no vocabulary in it.
TEST(LinearCrossEntropyTest, ExtraMemoryIsBoundedWhateverTheVocabulary) {
  ScopedThreads threads(2);
  for (const int64_t tokens : {1, 512, 4096, 131072}) {
    for (const int64_t dim : {1, 64, 640, 896, 2304, 4096, 6144}) {
      for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
        Options options;
        options.compute = compute;
        const int64_t saved = 8 * tokens;
        EXPECT_LE(LinearCrossEntropyScratchBytes(tokens, dim, options) + saved, (2 << 20) + 16 * tokens)
            << tokens << " tokens, dim " << dim;
      }
    }
  }
  for (const int vocab : {32768, 262144}) {
    const Case c{3, vocab, 16, {}, "vocabulary", 0.3f};
    const Inputs in(c);
    const Outputs o = RunAll(in, c.options);  // checks the guard
    CheckLoss(o, in, c.options, "vocabulary");
    EXPECT_LE(RelativeError(o.dh.Values(), ReferenceGradients(in, c.options, kGradScale).dh), 1e-5);
  }
}

}  // namespace
}  // namespace thimble
