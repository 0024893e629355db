#include "ops/rope.h"

#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/golden_lines.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

struct ScalingCase {
  std::string name;
  int head_dim;
  double theta;
  RopeScaling scaling;
};

std::vector<ScalingCase> Cases() {
  using Type = RopeScaling::Type;
  return {
      {"none64", 64, 1e4, {}},
      {"none128", 128, 1e6, {}},
      {"linear", 64, 1e4, {.type = Type::kLinear, .factor = 8}},
      {"llama3", 128, 5e5, {.type = Type::kLlama3, .factor = 32, .original_max_position = 8192}},
      {"yarn", 128, 1e6, {.type = Type::kYarn, .factor = 4, .original_max_position = 32768}},
      {"yarn_mscale",
       64,
       1e4,
       {.type = Type::kYarn,
        .factor = 40,
        .original_max_position = 4096,
        .beta_fast = 24,
        .beta_slow = 2,
        .mscale = 0.8f,
        .mscale_all_dim = 0.5f}},
      {"yarn_whole",
       64,
       1e4,
       {.type = Type::kYarn,
        .factor = 16,
        .original_max_position = 2048,
        .attention_factor = 1.25f,
        .truncate = false}},
  };
}

// Against Hugging Face (tests/golden/ops/make.py): an ulp or two, where its float power rounds otherwise.
TEST(RopeTest, FrequenciesMatchHuggingFace) {
  std::map<std::string, std::vector<float>> golden;
  for (auto& [name, values] : ReadGoldenLines("rope.txt")) golden[name] = values;
  for (const ScalingCase& c : Cases()) {
    const RopeFrequencies got = MakeRopeFrequencies(c.head_dim, c.theta, c.scaling, 131072);
    const std::vector<float>& want = golden[c.name];
    ASSERT_EQ(want.size(), got.inv_freq.size() + 1) << c.name;
    EXPECT_FLOAT_EQ(got.attention_factor, want[0]) << c.name;
    for (size_t i = 0; i < got.inv_freq.size(); ++i) {
      EXPECT_NEAR(got.inv_freq[i], want[i + 1], 3 * kFloatEpsilon * want[i + 1]) << c.name << " " << i;
    }
  }
}

TEST(RopeTest, TableMatchesTorch) {
  const std::vector<int32_t> positions = {0, 1, 7, 511, 4095, 131071};
  const RopeFrequencies frequencies = MakeRopeFrequencies(8, 5e5, {}, 131072);
  TestMatrix cos(6, 4), sin(6, 4);
  RopeTable({positions.data(), 6}, {frequencies.inv_freq.data(), 4}, 1.5f, cos.view(), sin.view());
  for (const auto& [name, values] : ReadGoldenLines("rope.txt")) {
    if (name != "cos" && name != "sin") continue;
    const TestMatrix& table = name == "cos" ? cos : sin;
    const std::vector<double> want(values.begin(), values.end());
    for (int t = 0; t < 6; ++t) {
      for (int i = 0; i < 4; ++i) {
        // Where inv_freq differs by an ulp, so does the angle.
        const double tolerance = kFloatEpsilon * (3 + positions[t] * frequencies.inv_freq[i]);
        EXPECT_NEAR(table(t, i), want[t * 4 + i], i == 0 ? 3 * kFloatEpsilon : tolerance) << name << t << i;
      }
    }
  }
  EXPECT_TRUE(cos.PaddingIntact() && sin.PaddingIntact());
}

template <typename Scalar>
std::vector<Scalar> Reference(const std::vector<Scalar>& x, const TestMatrix& cos, const TestMatrix& sin, int heads,
                              int head_dim) {
  const int half = cos.cols();
  std::vector<Scalar> y = x;
  for (int t = 0; t < cos.rows(); ++t) {
    for (int head = 0; head < heads; ++head) {
      const int begin = (t * heads + head) * head_dim;
      for (int i = 0; i < half; ++i) {
        const double c = cos(t, i), s = sin(t, i);
        y[begin + i] = x[begin + i] * c - x[begin + half + i] * s;
        y[begin + half + i] = x[begin + half + i] * c + x[begin + i] * s;
      }
    }
  }
  return y;
}

class RopeSizeTest : public ::testing::TestWithParam<std::tuple<int, int, int, int>> {};

TEST_P(RopeSizeTest, MatchesReferenceAndComplexStep) {
  const auto [tokens, heads, half, rest] = GetParam();
  const int head_dim = 2 * half + rest, cols = heads * head_dim;
  const TestMatrix cos = TestMatrix::Random(tokens, half, 1), sin = TestMatrix::Random(tokens, half, 2, 1, 5),
                   x = TestMatrix::Random(tokens, cols, 3), dy = TestMatrix::Random(tokens, cols, 4);
  TestMatrix y(tokens, cols), dx(tokens, cols);
  RopeForward(x.view(), cos.view(), sin.view(), head_dim, y.view());
  RopeBackward(dy.view(), cos.view(), sin.view(), head_dim, dx.view());
  const std::vector<double> expected = Reference(x.To<double>(), cos, sin, heads, head_dim);
  ExpectAllNear(y.Values(), expected, 4 * kFloatEpsilon * (1 + MaxAbs(expected)), "y");
  const std::vector<double> expected_dx = ComplexStepGradient(
      [&](const std::vector<Complex>& z) {
        return WeightedSum(dy.To<double>(), Reference(z, cos, sin, heads, head_dim));
      },
      x.To<double>());
  ExpectAllNear(dx.Values(), expected_dx, 4 * kFloatEpsilon * (1 + MaxAbs(expected_dx)), "dx");
  EXPECT_TRUE(y.PaddingIntact() && dx.PaddingIntact());
  TestMatrix in_place = x;
  RopeForward(in_place.view(), cos.view(), sin.view(), head_dim, in_place.view());
  EXPECT_EQ(in_place.Values(), y.Values());
}

INSTANTIATE_TEST_SUITE_P(Sizes, RopeSizeTest,
                         ::testing::Combine(::testing::Values(0, 1, 3), ::testing::Values(1, 3),
                                            ::testing::Values(1, 8, 19), ::testing::Values(0, 4)));

TEST(RopeTest, BackwardUndoesARotation) {
  const int tokens = 50, head_dim = 64;
  std::vector<int32_t> positions(tokens);
  for (int t = 0; t < tokens; ++t) positions[t] = 100 * t;
  const RopeFrequencies frequencies = MakeRopeFrequencies(head_dim, 1e4, {}, 8192);
  TestMatrix cos(tokens, 32), sin(tokens, 32), y(tokens, 128);
  RopeTable({positions.data(), tokens}, {frequencies.inv_freq.data(), 32}, 1, cos.view(), sin.view());
  const TestMatrix x = TestMatrix::Random(tokens, 128, 1);
  RopeForward(x.view(), cos.view(), sin.view(), head_dim, y.view());
  RopeBackward(y.view(), cos.view(), sin.view(), head_dim, y.view());
  ExpectAllNear(y.Values(), x.To<double>(), 8 * kFloatEpsilon * MaxAbs(x.To<double>()), "x");
}

TEST(RopeTest, SameBitsForAnyThreadCountAndLevel) {
  const int tokens = 203, head_dim = 70, cols = 5 * head_dim;
  std::vector<int32_t> positions(tokens);
  for (int t = 0; t < tokens; ++t) positions[t] = 3 * t;
  const RopeFrequencies frequencies = MakeRopeFrequencies(head_dim, 1e4, {}, 8192);
  const TestMatrix x = TestMatrix::Random(tokens, cols, 3);
  const auto run = [&] {
    TestMatrix cos(tokens, 35), sin(tokens, 35), y(tokens, cols), dx(tokens, cols);
    RopeTable({positions.data(), tokens}, {frequencies.inv_freq.data(), 35}, 1, cos.view(), sin.view());
    RopeForward(x.view(), cos.view(), sin.view(), head_dim, y.view());
    RopeBackward(x.view(), cos.view(), sin.view(), head_dim, dx.view());
    return Concatenate(Concatenate(cos.Values(), y.Values()), dx.Values());
  };
  ExpectSameBitsForAnyThreadCount(run);
  ExpectSameBitsAtEveryCpuLevel(run);
}

}  // namespace
}  // namespace thimble
