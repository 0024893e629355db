// GPTQ against the definition in doubles, and against rounding to nearest.
#include "ops/gptq.h"

#include <Eigen/Dense>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "ops/quantize_scaled.h"
#include "tests/ops/golden_values.h"

namespace thimble {
namespace {

constexpr int64_t kRows = 20, kCols = 192, kTokens = 300;

// Inputs whose columns depend on each other, in several sizes.
std::vector<float> Inputs() {
  const std::vector<float> noise = GoldenValues(0, kTokens * kCols);
  std::vector<float> x(noise.size());
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t c = 0; c < kCols; ++c) {
      const float shared = noise[t * kCols] + noise[t * kCols + c / 16 * 16];
      x[t * kCols + c] = (shared + noise[t * kCols + c]) * static_cast<float>(1 + c % 7);
    }
  }
  return x;
}

std::vector<double> Hessian(const std::vector<float>& x) {
  std::vector<double> h(kCols * kCols, 0);
  AccumulateHessian({x.data(), 100, kCols, kCols}, &h);
  AccumulateHessian({x.data() + 100 * kCols, kTokens - 100, kCols, kCols}, &h);
  return h;
}

QuantizedWeight Nearest(const ScaledScheme& scheme, const std::vector<float>& values) {
  QuantizedWeight w = MakeScaledWeight(scheme.format, kRows, kCols, GroupOf(scheme.format, scheme.group, kCols));
  if (scheme.format == Format::kE2M1) {
    float peak = 0;
    for (float value : values) peak = std::max(peak, std::fabs(value));
    SetTensorScale(peak, &w);
  }
  EXPECT_TRUE(QuantizeScaledRows({values.data(), kRows * kCols}, 0, &w));
  return w;
}

std::vector<float> Decoded(const QuantizedWeight& w) {
  std::vector<float> values(kRows * kCols);
  DecodeRow(w.View(), 0, 0, kRows * kCols, values.data());
  return values;
}

// Squared error of the layer's outputs.
double OutputError(const std::vector<float>& x, const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      double y = 0;
      for (int64_t c = 0; c < kCols; ++c)
        y += x[t * kCols + c] * static_cast<double>(a[r * kCols + c] - b[r * kCols + c]);
      sum += y * y;
    }
  }
  return sum;
}

// The value of the grid next to x, by trying all.
double NearestValue(const QuantizedWeight& w, int64_t at, double x) {
  const double scale = BlockAbsmax(w.View(), at / w.block_size);
  double best = 0, least = std::numeric_limits<double>::infinity();
  for (int code = 0; code < (HasNibbles(w.format) ? 16 : 256); ++code) {
    const double value = Codebook(w.format)[code] * scale;
    if (std::fabs(value - x) < least) {
      least = std::fabs(value - x);
      best = value;
    }
  }
  return best;
}

// The paper's step, one weight at a time: the others that are left take delta = -(w - q) / [H^-1]_ii * [H^-1]_i, the
// inverse being that of the rows and columns that are left.
std::vector<double> ByDefinition(const std::vector<double>& h, const std::vector<float>& values,
                                 const QuantizedWeight& w, double damping) {
  Eigen::MatrixXd full(kCols, kCols);
  for (int64_t i = 0; i < kCols; ++i) {
    for (int64_t j = 0; j < kCols; ++j) full(i, j) = h[std::max(i, j) * kCols + std::min(i, j)];
  }
  full.diagonal().array() += damping * full.diagonal().mean();
  std::vector<double> left(values.begin(), values.end());
  for (int64_t i = 0; i < kCols; ++i) {
    const int64_t rest = kCols - i;
    const Eigen::MatrixXd inverse = full.bottomRightCorner(rest, rest).inverse();
    for (int64_t r = 0; r < kRows; ++r) {
      double* row = &left[r * kCols];
      const double q = NearestValue(w, r * kCols + i, row[i]);
      const double delta = (row[i] - q) / inverse(0, 0);
      for (int64_t j = 1; j < rest; ++j) row[i + j] -= delta * inverse(0, j);
      row[i] = q;
    }
  }
  return left;
}

TEST(GptqTest, FollowsTheDefinition) {
  const std::vector<float> x = Inputs(), values = GoldenValues(6, kRows * kCols);
  const std::vector<double> h = Hessian(x);
  const GptqOrder order(h, kCols, {.damping = 0.05, .act_order = false});
  ASSERT_TRUE(order.ok());
  for (const char* name : {"int4_g32", "fp8_e4m3", "nvfp4"}) {
    QuantizedWeight w = Nearest(*FindScaledScheme(name), values);
    const std::vector<double> expected = ByDefinition(h, values, w, 0.05);
    order.Quantize({values.data(), kRows, kCols, kCols}, &w);
    const std::vector<float> found = Decoded(w);
    // A weight midway between two codes may go either way in floats, and its row another way from there on.
    int64_t different = 0;
    for (size_t i = 0; i < found.size(); ++i)
      different += std::fabs(found[i] - expected[i]) > 1e-6 * std::fabs(expected[i]);
    EXPECT_LE(different, kRows * kCols / 50) << name;
    const std::vector<float> rounded(expected.begin(), expected.end());
    EXPECT_NEAR(OutputError(x, found, values) / OutputError(x, rounded, values), 1, 0.02) << name;
  }
}

TEST(GptqTest, LosesLessThanRoundingToNearest) {
  const std::vector<float> x = Inputs(), values = GoldenValues(6, kRows * kCols);
  const std::vector<double> h = Hessian(x);
  for (bool act_order : {false, true}) {
    const GptqOrder order(h, kCols, {.act_order = act_order});
    ASSERT_TRUE(order.ok());
    for (const ScaledScheme& scheme : ScaledSchemes()) {
      if (kCols % std::max(scheme.group, 1) != 0) continue;
      QuantizedWeight w = Nearest(scheme, values);
      const double nearest = OutputError(x, Decoded(w), values);
      order.Quantize({values.data(), kRows, kCols, kCols}, &w);
      EXPECT_LT(OutputError(x, Decoded(w), values), 0.5 * nearest) << scheme.name << " " << act_order;
    }
  }
}

// Without anything between the columns nothing is made up for.
TEST(GptqTest, IndependentColumnsAreRoundedToNearest) {
  const std::vector<float> values = GoldenValues(6, kRows * kCols);
  std::vector<double> h(kCols * kCols, 0);
  for (int64_t i = 0; i < kCols; ++i) h[i * kCols + i] = static_cast<double>(1 + i % 5);
  const GptqOrder order(h, kCols, {});
  ASSERT_TRUE(order.ok());
  QuantizedWeight w = Nearest(*FindScaledScheme("fp8_e4m3"), values);
  const std::vector<float> nearest = Decoded(w);
  order.Quantize({values.data(), kRows, kCols, kCols}, &w);
  const std::vector<float> found = Decoded(w);
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_LE(std::fabs(found[i] - values[i]), std::fabs(nearest[i] - values[i]) * 1.001f + 1e-9f);
  }
}

TEST(GptqTest, SameBitsForAnyNumberOfThreads) {
  const std::vector<float> x = Inputs(), values = GoldenValues(6, kRows * kCols);
  const int threads = NumThreads();
  std::vector<std::vector<uint8_t>> codes;
  for (int count : {1, 3}) {
    SetNumThreads(count);
    const GptqOrder order(Hessian(x), kCols, {});
    QuantizedWeight w = Nearest(*FindScaledScheme("int4_g32"), values);
    order.Quantize({values.data(), kRows, kCols, kCols}, &w);
    codes.push_back(w.codes);
  }
  SetNumThreads(threads);
  EXPECT_EQ(codes[0], codes[1]);
}

// Columns that had no input, and a Hessian that is none.
TEST(GptqTest, UnusedColumnsAndNoHessian) {
  std::vector<float> x = Inputs();
  for (int64_t t = 0; t < kTokens; ++t) x[t * kCols + 5] = 0;
  const std::vector<float> values = GoldenValues(6, kRows * kCols);
  const GptqOrder order(Hessian(x), kCols, {});
  ASSERT_TRUE(order.ok());
  QuantizedWeight w = Nearest(*FindScaledScheme("int4"), values);
  order.Quantize({values.data(), kRows, kCols, kCols}, &w);
  for (int64_t r = 0; r < kRows; ++r) EXPECT_EQ(Decoded(w)[r * kCols + 5], 0);
  std::vector<double> bad(kCols * kCols, 0);
  for (int64_t i = 0; i < kCols; ++i) bad[i * kCols + i] = i == 3 ? -1e3 : 1;
  EXPECT_FALSE(GptqOrder(bad, kCols, {}).ok());
}

}  // namespace
}  // namespace thimble
