// Rounded activations against the definition in double, by search over all values of the format.
#include "ops/round_tokens.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

// All finite magnitudes of E4M3, by its definition.
std::vector<double> Magnitudes() {
  std::vector<double> values;
  for (int code = 0; code < 127; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    values.push_back(exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10));
  }
  return values;
}

TEST(RoundTokensTest, E4M3IsTheNearestValueAndEvenAtTies) {
  const std::vector<double> values = Magnitudes();
  // A row whose largest is 448 has the scale 1: values, midpoints and their neighbours.
  std::vector<float> x = {448};
  std::vector<double> expected = {448};
  for (size_t i = 0; i + 1 < values.size(); ++i) {
    const float middle = static_cast<float>((values[i] + values[i + 1]) / 2);
    x.insert(x.end(),
             {static_cast<float>(values[i]), middle, -std::nextafter(middle, 0.0f), std::nextafter(middle, 1e9f)});
    expected.insert(expected.end(), {values[i], i % 2 == 0 ? values[i] : values[i + 1], -values[i], values[i + 1]});
  }
  std::vector<float> y(x.size());
  const int64_t size = static_cast<int64_t>(x.size());
  RoundTokens(ConstMatrix(x.data(), 1, size), ActivationGrid::kE4M3, Matrix(y.data(), 1, size));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], expected[i]) << x[i];
}

TEST(RoundTokensTest, Int8IsTheDefinition) {
  constexpr int kRows = 37, kCols = 129;
  TestMatrix x = TestMatrix::Random(kRows, kCols, 1), y = TestMatrix::Random(kRows, kCols, 2);
  for (int c = 0; c < kCols; ++c) {
    x(3, c) = 0;
    x(4, c) = std::fabs(x(4, c)) + 1;  // the range reaches to 0
    x(5, c) = -std::fabs(x(5, c)) - 1;
  }
  RoundTokens(x.view(), ActivationGrid::kInt8, y.view());
  for (int t = 0; t < kRows; ++t) {
    float lo = 0, hi = 0;
    for (int c = 0; c < kCols; ++c) {
      lo = std::min(lo, x(t, c));
      hi = std::max(hi, x(t, c));
    }
    const float scale = std::max((hi - lo) / 255.0f, std::numeric_limits<float>::min());
    const double zero = std::clamp(-128.0 - std::nearbyint(lo / scale), -128.0, 127.0);
    for (int c = 0; c < kCols; ++c) {
      const double code = std::clamp(std::nearbyint(x(t, c) * (1.0f / scale)) + zero, -128.0, 127.0);
      EXPECT_EQ(y(t, c), static_cast<float>(code - zero) * scale) << t << " " << c;
      // Ends of the range may be rounded outward and cut.
      EXPECT_LE(std::fabs(y(t, c) - x(t, c)), 1.01f * scale);
    }
  }
  EXPECT_TRUE(y.PaddingIntact());
}

TEST(RoundTokensTest, WhatIsNotFiniteStaysSo) {
  for (const ActivationGrid grid : {ActivationGrid::kInt8, ActivationGrid::kE4M3}) {
    std::vector<float> x = {1, std::numeric_limits<float>::quiet_NaN(), 2, 0, 0, 0};
    RoundTokens(ConstMatrix(x.data(), 2, 3), grid, Matrix(x.data(), 2, 3));
    for (int c = 0; c < 3; ++c) {
      EXPECT_TRUE(std::isnan(x[c]));
      EXPECT_EQ(x[3 + c], 0);
    }
  }
}

}  // namespace
}  // namespace thimble
