#include "ops/bit_linear.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "ops/parallel.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

struct Quantised {
  explicit Quantised(const TestMatrix& x)
      : q(x.view().rows, Int8RowWords(x.view().cols)), scale(x.view().rows), cols(x.view().cols) {
    QuantizeRowsInt8(x.view(), q.view(), {scale.data(), static_cast<int64_t>(scale.size())});
  }
  int At(int64_t r, int64_t c) const { return reinterpret_cast<const int8_t*>(q.view().row(r))[c]; }
  TestMatrix q;
  std::vector<float> scale;
  int64_t cols;
};

struct Ternary {
  explicit Ternary(const TestMatrix& w)
      : codes(w.view().rows, TernaryRowWords(w.view().cols), 0, /*padding=*/0), cols(w.view().cols) {
    TestScratch scratch(TernarizeScratchBytes(w.view().rows));
    TernarizeWeight({w.view().data, w.view().rows, w.view().cols}, codes.view(), &gamma, scratch.view());
  }
  WeightView view() const { return TernaryView(codes.view(), cols, &gamma); }
  // -1, 0 or 1, by way of DecodeRow.
  int At(int64_t o, int64_t c) const {
    float value;
    DecodeRow(view(), o, c, 1, &value);
    return value == 0 ? 0 : value == gamma ? 1 : value == -gamma ? -1 : 99;
  }
  TestMatrix codes;
  float gamma = 0;
  int64_t cols;
};

TEST(BitLinearTest, PublishedExample) {
  TestMatrix w(1, 4), x(1, 4), y(1, 1);
  const float weights[] = {0.9f, -0.2f, 0.05f, -1.3f}, inputs[] = {0.5f, -1.0f, 0.25f, 0.1f};
  std::copy_n(weights, 4, w.view().data);
  std::copy_n(inputs, 4, x.view().data);
  const Ternary t(w);
  const Quantised q(x);
  EXPECT_FLOAT_EQ(t.gamma, 0.6125f);
  EXPECT_EQ(std::vector<int>({t.At(0, 0), t.At(0, 1), t.At(0, 2), t.At(0, 3)}), std::vector<int>({1, 0, 0, -1}));
  EXPECT_FLOAT_EQ(q.scale[0], 127);
  EXPECT_EQ(std::vector<int>({q.At(0, 0), q.At(0, 1), q.At(0, 2), q.At(0, 3)}), std::vector<int>({64, -127, 32, 13}));
  TestScratch scratch(BitLinearScratchBytes(1, 4));
  BitLinearForward(q.q.view(), {q.scale.data(), 1}, t.view(), y.view(), scratch.view());
  EXPECT_NEAR(y.view()(0, 0), 51 * 0.6125 / 127, 1e-7);
}

class BitLinearShapeTest : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(BitLinearShapeTest, CodesAndProductsAreTheFormulas) {
  const auto [rows, in, out] = GetParam();
  TestMatrix x = TestMatrix::Random(rows, in, 1, 3), w = TestMatrix::Random(out, in, 2, 0.1f, /*padding=*/0);
  for (int64_t c = 0; c < in && rows > 1; ++c) x.view()(1, c) = 0;  // a row of zeros
  const Quantised q(x);
  const Ternary t(w);
  double sum = 0;
  for (float v : w.Values()) sum += std::abs(static_cast<double>(v));
  EXPECT_NEAR(t.gamma, std::max(sum / (out * in), 1e-5), 1e-6 * t.gamma);
  const float inverse = 1.0f / t.gamma;
  for (int64_t o = 0; o < out; ++o) {
    for (int64_t c = 0; c < in; ++c) {
      const float rounded = std::nearbyint(w.view()(o, c) * inverse);
      ASSERT_EQ(t.At(o, c), static_cast<int>(std::clamp(rounded, -1.0f, 1.0f))) << o << ", " << c;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    float most = 1e-5f;
    for (int64_t c = 0; c < in; ++c) most = std::max(most, std::abs(x.view()(r, c)));
    ASSERT_EQ(q.scale[r], 127.0f / most);
    for (int64_t c = 0; c < in; ++c)
      ASSERT_EQ(q.At(r, c), static_cast<int>(std::nearbyint(x.view()(r, c) * q.scale[r])));
  }
  TestMatrix y(rows, out, 0, 3);
  TestScratch scratch(BitLinearScratchBytes(rows, in));
  const ConstVector scale(q.scale.data(), rows);
  BitLinearForward(q.q.view(), scale, t.view(), y.view(), scratch.view());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t o = 0; o < out; ++o) {
      int64_t product = 0;
      for (int64_t c = 0; c < in; ++c) product += q.At(r, c) * t.At(o, c);
      ASSERT_EQ(y.view()(r, o), static_cast<float>(product) * (t.gamma / q.scale[r])) << r << ", " << o;
    }
  }
  EXPECT_TRUE(y.PaddingIntact());
  TestMatrix back(rows, in);
  DequantizeRowsInt8(q.q.view(), scale, back.view());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < in; ++c) ASSERT_EQ(back.view()(r, c), static_cast<float>(q.At(r, c)) / q.scale[r]);
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, BitLinearShapeTest,
                         ::testing::Combine(::testing::Values(1, 3, 32, 75), ::testing::Values(1, 63, 64, 200, 1100),
                                            ::testing::Values(1, 16, 33, 70)));

std::vector<float> AllOutputs() {
  const TestMatrix x = TestMatrix::Random(67, 300, 5), w = TestMatrix::Random(90, 300, 6, 1, /*padding=*/0);
  const Quantised q(x);
  const Ternary t(w);
  TestMatrix y(67, 90), back(67, 300);
  TestScratch scratch(BitLinearScratchBytes(67, 300));
  BitLinearForward(q.q.view(), {q.scale.data(), 67}, t.view(), y.view(), scratch.view());
  DequantizeRowsInt8(q.q.view(), {q.scale.data(), 67}, back.view());
  std::vector<float> all = y.Values();
  for (const TestMatrix* m : {static_cast<const TestMatrix*>(&back), &q.q, &t.codes}) {
    const std::vector<float> values = m->Values();
    all.insert(all.end(), values.begin(), values.end());
  }
  all.push_back(t.gamma);
  // Few rows go another way.
  for (const int64_t rows : {1, 2, 3, 4}) {
    TestMatrix few(rows, 90);
    BitLinearForward(q.q.view().Rows(0, rows), {q.scale.data(), rows}, t.view(), few.view(), scratch.view());
    const std::vector<float> values = few.Values(), expected = y.Values();
    EXPECT_TRUE(std::equal(values.begin(), values.end(), expected.begin()));
    all.insert(all.end(), values.begin(), values.end());
  }
  return all;
}

TEST(BitLinearTest, SameBitsAtEveryCpuLevel) { ExpectSameBitsAtEveryCpuLevel(AllOutputs); }

TEST(BitLinearTest, SameBitsForAnyNumberOfThreads) {
  const std::vector<float> expected = AllOutputs();
  const int before = NumThreads();
  for (const int threads : {1, 2, 3}) {
    SetNumThreads(threads);
    const std::vector<float> found = AllOutputs();
    EXPECT_EQ(std::memcmp(found.data(), expected.data(), expected.size() * sizeof(float)), 0) << threads;
  }
  SetNumThreads(before);
}

TEST(BitLinearTest, ExtremeRowsStayWithinInt8) {
  TestMatrix x(3, 5);
  const float huge[] = {3e38f, -3e38f, 1e-30f, 0, 1};
  std::copy_n(huge, 5, x.view().row(0));
  const float tiny[] = {1e-38f, -1e-38f, 0, 1e-6f, -1e-6f};
  std::copy_n(tiny, 5, x.view().row(1));
  const Quantised q(x);
  EXPECT_EQ(q.At(0, 0), 127);
  EXPECT_EQ(q.At(0, 1), -127);
  EXPECT_EQ(q.At(1, 3), 13) << "below 1e-5 the scale is that of 1e-5";
  EXPECT_EQ(q.At(2, 0), 0);
}

}  // namespace
}  // namespace thimble
