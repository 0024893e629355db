// 8-bit AdamW against bitsandbytes (tests/golden/ops/make_adamw_8bit.py) and against a plain loop.
#include "ops/adamw_8bit.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/dynamic_map.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/crc32.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

constexpr int64_t kGoldenCount = 4096 + 2 * 256 + 37;
constexpr int kGoldenSteps = 6;

struct State {
  explicit State(int64_t n) : m(n), v(n), m_absmax(MomentBlocks(n)), v_absmax(MomentBlocks(n)) {}
  Moments8Bit View() {
    return {m.data(), v.data(), {m_absmax.data(), std::ssize(m_absmax)}, {v_absmax.data(), std::ssize(v_absmax)}};
  }
  std::vector<float> Floats() const {
    std::vector<float> all(m.begin(), m.end());
    all.insert(all.end(), v.begin(), v.end());
    return Concatenate(Concatenate(all, m_absmax), v_absmax);
  }
  std::vector<uint8_t> m, v;
  std::vector<float> m_absmax, v_absmax;
};

uint32_t Mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352d;
  x ^= x >> 15;
  x *= 0x846ca68b;
  return x ^ (x >> 16);
}

// As `values` and `gradient` of the golden file's script.
std::vector<float> GoldenValues(uint32_t stream, int span) {
  std::vector<float> values(kGoldenCount);
  for (uint32_t i = 0; i < values.size(); ++i) {
    const uint32_t bits = Mix(i + 1000003 * stream);
    const float magnitude =
        std::ldexp(1 + static_cast<float>(bits & 1023) / 1024, -static_cast<int>((bits >> 10 & 255) % span));
    values[i] = bits >> 31 != 0 ? -magnitude : magnitude;
  }
  return values;
}

std::vector<float> GoldenGradient(int step) {
  std::vector<float> grad = GoldenValues(static_cast<uint32_t>(step), 14);
  std::fill_n(grad.begin() + 256, 256, 0.0f);
  if (step != 3) std::fill_n(grad.begin() + 512, 256, 0.0f);
  return grad;
}

AdamWOptions GoldenOptions(double beta1, double beta2, int step) {
  return {.learning_rate = 3e-3, .beta1 = beta1, .beta2 = beta2, .eps = 1e-8, .weight_decay = 0.1, .step = step};
}

std::vector<std::vector<std::string>> GoldenWords() {
  const std::string path = std::string(THIMBLE_SOURCE_DIR) + "/tests/golden/ops/adamw_8bit.txt";
  std::ifstream file(path);
  EXPECT_TRUE(file.good()) << path;
  std::vector<std::vector<std::string>> lines;
  for (std::string text; std::getline(file, text);) {
    std::istringstream words(text);
    lines.emplace_back();
    for (std::string word; words >> word;) lines.back().push_back(word);
  }
  return lines;
}

// Two roundings of at most 4 a step, on both sides.
void ExpectParameters(const std::vector<float>& param, const std::vector<std::string>& golden) {
  ASSERT_EQ(golden.size(), 1 + (param.size() + 60) / 61);
  for (size_t i = 0; i * 61 < param.size(); ++i) {
    EXPECT_NEAR(param[i * 61], std::stof(golden[i + 1]), 4 * kGoldenSteps * kFloatEpsilon) << i;
  }
}

TEST(AdamW8BitTest, MomentsAreBitForBitThoseOfBitsandbytes) {
  const auto golden = GoldenWords();
  ASSERT_EQ(golden.size(), kGoldenSteps + 4u);
  std::vector<float> param = GoldenValues(0, 3);
  State state(kGoldenCount);
  for (int step = 1; step <= kGoldenSteps; ++step) {
    const std::vector<float> grad = GoldenGradient(step);
    AdamW8BitUpdate({grad.data(), kGoldenCount}, 1, GoldenOptions(0.5, 0.5, step), MomentRounding::kGrid,
                    {param.data(), kGoldenCount}, state.View());
    const std::vector<std::string>& line = golden[step - 1];
    const uint32_t found[] = {Crc32(state.m), Crc32(state.v), Crc32(state.m_absmax), Crc32(state.v_absmax)};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(found[i], std::stoul(line[i + 1], nullptr, 16)) << step << ": " << i;
  }
  ExpectParameters(param, golden[kGoldenSteps]);
}

int64_t DifferentCodes(const std::vector<uint8_t>& codes, const std::string& hex) {
  EXPECT_EQ(hex.size(), 2 * codes.size());
  int64_t different = 0;
  for (size_t i = 0; i < codes.size(); ++i) {
    const int expected = std::stoi(hex.substr(2 * i, 2), nullptr, 16);
    if (codes[i] != expected) ++different;
    EXPECT_LE(std::abs(codes[i] - expected), 1) << i;
  }
  return different;
}

// With the usual betas torch fuses some products and sums: a moment may differ by an ulp, and so, once in some 10^5,
// its code by one.
TEST(AdamW8BitTest, CodesOfBitsandbytesWithTheUsualBetas) {
  const auto golden = GoldenWords();
  ASSERT_EQ(golden.size(), kGoldenSteps + 4u);
  std::vector<float> param = GoldenValues(0, 3);
  State state(kGoldenCount);
  for (int step = 1; step <= kGoldenSteps; ++step) {
    const std::vector<float> grad = GoldenGradient(step);
    AdamW8BitUpdate({grad.data(), kGoldenCount}, 1, GoldenOptions(0.9, 0.999, step), MomentRounding::kGrid,
                    {param.data(), kGoldenCount}, state.View());
  }
  EXPECT_LE(DifferentCodes(state.m, golden[kGoldenSteps + 1][1]), 2);
  EXPECT_LE(DifferentCodes(state.v, golden[kGoldenSteps + 2][1]), 2);
  ExpectParameters(param, golden[kGoldenSteps + 3]);
}

TEST(AdamW8BitTest, EncoderFindsTheNearestCode) {
  for (const DynamicEncoder* encoder : {&SignedDynamicEncoder(), &UnsignedDynamicEncoder()}) {
    const auto check = [&](float value) {
      int expected = 0;
      while (expected < 255 && (encoder->map[expected] + encoder->map[expected + 1]) * 0.5f < value) ++expected;
      ASSERT_EQ(encoder->Code(value), expected) << value;
    };
    for (int i = 0; i < 256; ++i) {
      EXPECT_EQ(encoder->Code(encoder->map[i]), i);
      if (i == 255) continue;
      const float midpoint = (encoder->map[i] + encoder->map[i + 1]) * 0.5f;
      check(midpoint);
      check(std::nextafter(midpoint, 2.0f));
      check(std::nextafter(midpoint, -2.0f));
    }
    for (uint32_t i = 0; i < 20000; ++i) {
      const uint32_t bits = Mix(i);
      check(std::ldexp(static_cast<float>(static_cast<int32_t>(bits)), -31 - static_cast<int>(Mix(bits) % 30)));
    }
    for (const float value : {0.0f, -0.0f, 1.0f, -1.0f, std::numeric_limits<float>::denorm_min(), 0x1p-126f}) {
      check(value);
    }
  }
}

// The same arithmetic as a plain loop, element by element.
void ReferenceStep(const std::vector<float>& grad, const AdamWOptions& o, MomentRounding rounding,
                   std::vector<float>* param, State* state) {
  const int64_t n = std::ssize(grad);
  const float step_size = static_cast<float>(-o.learning_rate / (1 - std::pow(o.beta1, o.step)));
  const float correction = static_cast<float>(std::sqrt(1 - std::pow(o.beta2, o.step)));
  for (int64_t block = 0; block < MomentBlocks(n); ++block) {
    const int64_t begin = block * 256, end = std::min(n, begin + 256);
    std::vector<float> m(n), v(n);
    float m_max = 0, v_max = 0;
    for (int64_t i = begin; i < end; ++i) {
      const float g = grad[i] * 0.5f;
      m[i] = SignedDynamicMap()[state->m[i]] * state->m_absmax[block] * static_cast<float>(o.beta1) +
             g * static_cast<float>(1 - o.beta1);
      v[i] = UnsignedDynamicMap()[state->v[i]] * state->v_absmax[block] * static_cast<float>(o.beta2) +
             static_cast<float>(1 - o.beta2) * g * g;
      const float root = std::sqrt(v[i]) / correction + static_cast<float>(o.eps);
      float& p = (*param)[i];
      p = p * static_cast<float>(1 - o.learning_rate * o.weight_decay) + step_size * m[i] / root;
      m_max = std::max(m_max, std::abs(m[i]));
      v_max = std::max(v_max, v[i]);
    }
    state->m_absmax[block] = m_max;
    state->v_absmax[block] = v_max;
    for (int64_t i = begin; i < end; ++i) {
      const bool grid = rounding == MomentRounding::kGrid;
      const float ms = grid ? SnapToGrid(m[i] * (1 / m_max)) : m[i] / m_max;
      const float vs = grid ? SnapToGrid(v[i] * (1 / v_max)) : v[i] / v_max;
      state->m[i] = m_max == 0 ? 0 : SignedDynamicEncoder().Code(ms);
      state->v[i] = v_max == 0 ? 0 : UnsignedDynamicEncoder().Code(vs);
      if (!grid && v[i] > 0) state->v[i] = std::max<uint8_t>(state->v[i], 1);
    }
  }
}

TEST(AdamW8BitTest, MatchesReferenceForAnySize) {
  for (const MomentRounding rounding : {MomentRounding::kNearest, MomentRounding::kGrid}) {
    for (const int64_t n : {0, 1, 7, 255, 256, 257, 1000}) {
      TestMatrix param = TestMatrix::Random(1, n, 1);
      std::vector<float> expected = param.Values();
      State state(n), reference(n);
      AdamWOptions options = {.learning_rate = 1e-2, .weight_decay = 0.05};
      for (options.step = 1; options.step <= 8; ++options.step) {
        const TestMatrix grad = TestMatrix::Random(1, n, 10 + options.step);
        AdamW8BitUpdate(grad.vector(), 0.5f, options, rounding, param.vector(), state.View());
        ReferenceStep(grad.Values(), options, rounding, &expected, &reference);
        ASSERT_EQ(state.Floats(), reference.Floats()) << n << " elements, step " << options.step;
        ASSERT_EQ(param.Values(), expected) << n << " elements, step " << options.step;
      }
      EXPECT_TRUE(param.PaddingIntact());
    }
  }
}

// Second moments from 1e-12 to 1 in one block: a code of zero would make the next update of the least 1e4 times lr.
TEST(AdamW8BitTest, SmallSecondMomentsDoNotExplode) {
  constexpr int64_t kCount = 256;
  std::vector<float> param(kCount, 0), grad(kCount);
  State state(kCount);
  for (int step = 1; step <= 30; ++step) {
    for (int64_t i = 0; i < kCount; ++i) grad[i] = std::pow(10.0f, -6.0f * static_cast<float>(i) / kCount);
    const std::vector<float> before = param;
    AdamW8BitUpdate({grad.data(), kCount}, 1, {.learning_rate = 1, .beta2 = 0.99, .step = step},
                    MomentRounding::kNearest, {param.data(), kCount}, state.View());
    for (int64_t i = 0; i < kCount; ++i) ASSERT_LE(std::abs(param[i] - before[i]), 3) << step << ": " << i;
  }
  EXPECT_EQ(*std::min_element(state.v.begin(), state.v.end()), 1);
}

TEST(AdamW8BitTest, InfiniteGradientStaysInItsBlock) {
  constexpr int64_t kCount = 600;
  for (const MomentRounding rounding : {MomentRounding::kNearest, MomentRounding::kGrid}) {
    std::vector<float> param(kCount, 1), grad(kCount, 0.5f);
    grad[300] = std::numeric_limits<float>::infinity();
    State state(kCount);
    for (int step = 1; step <= 2; ++step) {
      AdamW8BitUpdate({grad.data(), kCount}, 1, {.step = step}, rounding, {param.data(), kCount}, state.View());
    }
    EXPECT_FALSE(std::isfinite(param[300]));
    EXPECT_TRUE(std::isfinite(param[255]) && std::isfinite(param[512]));
  }
}

TEST(AdamW8BitTest, SameBitsForAnyThreadCountAndLevel) {
  constexpr int64_t kCount = 100003;
  for (const MomentRounding rounding : {MomentRounding::kNearest, MomentRounding::kGrid}) {
    const auto run = [&] {
      TestMatrix param = TestMatrix::Random(1, kCount, 2);
      State state(kCount);
      for (int step = 1; step <= 3; ++step) {
        const TestMatrix grad = TestMatrix::Random(1, kCount, 4 + step);
        AdamW8BitUpdate(grad.vector(), 0.5f, {.weight_decay = 0.1, .step = step}, rounding, param.vector(),
                        state.View());
      }
      return Concatenate(param.Values(), state.Floats());
    };
    ExpectSameBitsForAnyThreadCount(run);
    ExpectSameBitsAtEveryCpuLevel(run);
  }
}

}  // namespace
}  // namespace thimble
