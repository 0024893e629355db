#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/ops/vector_math_test.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {

// The functions by number, so that one table serves all levels: 0 exp, 1 sigmoid, 2 tanh.
void Apply(int function, const float* x, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < n; i += lanes) {
    const int64_t part = std::min(lanes, n - i);
    const auto v = part == lanes ? hn::LoadU(d, x + i) : LoadPart(d, x + i, part);
    const auto r = function == 0 ? Exp(d, v) : function == 1 ? Sigmoid(d, v) : Tanh(d, v);
    if (part == lanes) {
      hn::StoreU(r, d, y + i);
    } else {
      StorePart(r, d, y + i, part);
    }
  }
}

struct Square {
  const float* x;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t i) const {
    const auto v = hn::LoadU(d, x + i);
    return hn::Mul(v, v);
  }
  float At(int64_t i) const { return x[i] * x[i]; }
};
double SumSquares(const float* x, int64_t n) { return SumInBlocks(F32(), n, Square{x}); }

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(Apply);
HWY_EXPORT(SumSquares);

double Exact(int function, double x) {
  if (function == 0) return std::exp(x);
  return function == 1 ? 1 / (1 + std::exp(-x)) : std::tanh(x);
}

// Every stride-th float pattern in blocks.
template <typename Body>
void ForFloats(uint64_t stride, const Body& body) {
  constexpr int64_t kBlock = 4096;
  std::vector<float> x(kBlock), y(kBlock);
  for (uint64_t begin = 0; begin < (uint64_t{1} << 32); begin += stride * kBlock) {
    for (int64_t i = 0; i < kBlock; ++i) {
      const uint32_t bits = static_cast<uint32_t>(begin + i * stride);
      std::memcpy(&x[i], &bits, sizeof(bits));
    }
    body(x, &y);
  }
}

void ExpectAccurate(int function, double limit_ulp) {
  double worst = 0;
  float where = 0;
  // 4.2 million values, all exponents and signs.
  ForFloats(1021, [&](const std::vector<float>& x, std::vector<float>* y) {
    HWY_DYNAMIC_DISPATCH(Apply)(function, x.data(), x.size(), y->data());
    for (size_t i = 0; i < x.size(); ++i) {
      if (std::isnan(x[i])) {
        EXPECT_TRUE(std::isnan((*y)[i]));
        continue;
      }
      const double exact = Exact(function, x[i]);
      const float rounded = static_cast<float>(exact);
      if (std::isinf(rounded) || std::isinf((*y)[i])) {
        EXPECT_EQ(rounded, (*y)[i]) << x[i];
        continue;
      }
      const float magnitude = std::max(std::abs(rounded), std::numeric_limits<float>::min());
      const double ulp = std::nextafter(magnitude, std::numeric_limits<float>::infinity()) - magnitude;
      const double error = std::abs((*y)[i] - exact) / ulp;
      if (!(error <= worst)) {
        worst = error;
        where = x[i];
      }
    }
  });
  ::testing::Test::RecordProperty("worst_ulp", std::to_string(worst));
  EXPECT_LE(worst, limit_ulp) << "at " << where;
}

TEST(VectorMathTest, ExpIsAccurate) { ExpectAccurate(0, 1.1); }
TEST(VectorMathTest, SigmoidIsAccurate) { ExpectAccurate(1, 2.5); }
TEST(VectorMathTest, TanhIsAccurate) { ExpectAccurate(2, 2.0); }

TEST(VectorMathTest, EdgesOfExp) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0, -0.0f, infinity, -infinity, 88.7f, 88.8f, -103.9f, -200, 1e30f, -1e30f};
  std::vector<float> y(x.size());
  HWY_DYNAMIC_DISPATCH(Apply)(0, x.data(), x.size(), y.data());
  EXPECT_EQ(y[0], 1);
  EXPECT_EQ(y[1], 1);
  EXPECT_EQ(y[2], infinity);
  EXPECT_EQ(y[3], 0);
  EXPECT_TRUE(std::isfinite(y[4]));
  EXPECT_EQ(y[5], infinity);
  EXPECT_EQ(y[6], std::numeric_limits<float>::denorm_min());
  EXPECT_EQ(y[7], 0);
  EXPECT_EQ(y[8], infinity);
  EXPECT_EQ(y[9], 0);
}

TEST(VectorMathTest, SameBitsAtEveryLevel) {
  std::vector<float> x(1999);
  for (size_t i = 0; i < x.size(); ++i) x[i] = std::sin(0.37f * i) * 0.1f * i;
  ExpectSameBitsAtEveryCpuLevel([&] {
    std::vector<float> all;
    for (int function = 0; function < 3; ++function) {
      std::vector<float> y(x.size());
      HWY_DYNAMIC_DISPATCH(Apply)(function, x.data(), x.size(), y.data());
      all.insert(all.end(), y.begin(), y.end());
    }
    for (const int64_t n : {0, 1, 15, 16, 17, 1023, 1999}) {
      all.push_back(static_cast<float>(HWY_DYNAMIC_DISPATCH(SumSquares)(x.data(), n)));
    }
    return all;
  });
}

TEST(VectorMathTest, SumInBlocksIsAccurate) {
  std::vector<float> x(5003);
  double exact = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = std::cos(0.11f * i);
    exact += static_cast<double>(x[i]) * x[i];
  }
  // 64 additions into one lane, 4 levels of the tree, one rounding of the square.
  EXPECT_NEAR(HWY_DYNAMIC_DISPATCH(SumSquares)(x.data(), x.size()), exact, exact * 69 * 6e-8);
  EXPECT_EQ(HWY_DYNAMIC_DISPATCH(SumSquares)(x.data(), 0), 0);
  EXPECT_EQ(HWY_DYNAMIC_DISPATCH(SumSquares)(x.data(), 1), x[0] * x[0]);
}

}  // namespace
}  // namespace thimble
#endif  // HWY_ONCE
