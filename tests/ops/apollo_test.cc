#include "ops/apollo.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/golden_lines.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

struct State {
  State(int64_t rows, int64_t cols, int64_t rank)
      : m(ApolloMomentSize(rows, cols, rank), 0), v(m), scratch(ApolloScratchBytes(rows, cols, rank)) {}
  void Update(ConstMatrix grad, float grad_scale, const std::vector<float>& projection, const ApolloOptions& options,
              Matrix param) {
    ApolloUpdate(grad, grad_scale, {projection.data(), std::ssize(projection)}, options, param,
                 {m.data(), std::ssize(m)}, {v.data(), std::ssize(v)}, {&norm, 1}, scratch.view());
  }
  std::vector<float> m, v;
  float norm = 0;
  TestScratch scratch;
};

std::vector<float> Projection(const ApolloOptions& options, int64_t rows, int64_t cols) {
  std::vector<float> projection(ApolloProjectionSize(rows, cols, options.rank));
  ApolloProjection(options, rows, cols, {projection.data(), std::ssize(projection)});
  return projection;
}

std::vector<double> Wide(const std::vector<float>& values) { return {values.begin(), values.end()}; }

// Six steps of apollo-torch (tests/golden/ops/make_optimizers.py) on a tall and a wide matrix, its projections given.
TEST(ApolloTest, MatchesApolloTorch) {
  const auto golden = ReadGoldenLines("apollo.txt");
  ASSERT_EQ(golden.size(), 2u * (1 + 6 * 5));
  for (const bool tall : {true, false}) {
    const auto* lines = &golden[tall ? 0 : 31];
    const int64_t rows = tall ? 7 : 4, cols = tall ? 5 : 9;
    TestMatrix param(rows, cols);
    for (int64_t i = 0; i < rows * cols; ++i) param(i / cols, i % cols) = lines[0].second[i];
    ApolloOptions options = {.learning_rate = 3e-2, .beta2 = 0.99, .weight_decay = 0.1, .rank = 2};
    options.scale = tall ? 1 : 4;
    State state(rows, cols, options.rank);
    for (options.step = 1; options.step <= 6; ++options.step, lines += 5) {
      state.Update({lines[1].second.data(), rows, cols}, 1, lines[2].second, options, param.view());
      const std::vector<double> p = Wide(lines[3].second), m = Wide(lines[4].second), v = Wide(lines[5].second);
      // A projection sums products of up to 100 times 2; a factor carries the relative error of its norms.
      const double tolerance = 16 * static_cast<double>(options.step) * kFloatEpsilon;
      ExpectAllNear(param.Values(), p, tolerance * std::max(1.0, MaxAbs(p)), "param");
      ExpectAllNear(state.m, m, tolerance * MaxAbs(m), "m");
      ExpectAllNear(state.v, v, tolerance * MaxAbs(v), "v");
    }
    EXPECT_TRUE(param.PaddingIntact() && state.scratch.GuardIntact());
  }
}

struct Reference {
  std::vector<double> p, m, v;
  double last = 0;

  void Step(const TestMatrix& grad, double scale, const std::vector<float>& projection, const ApolloOptions& o) {
    const int64_t rows = grad.rows(), cols = grad.cols(), rank = o.rank;
    const bool tall = rows >= cols;
    const int64_t channels = tall ? rows : cols, inner = tall ? cols : rows;
    std::vector<double> factor(channels);
    for (int64_t c = 0; c < channels; ++c) {
      double r_squares = 0, n_squares = 0;
      for (int64_t k = 0; k < rank; ++k) {
        double r = 0;
        for (int64_t j = 0; j < inner; ++j) {
          r += scale * (tall ? grad(c, j) * projection[k * cols + j] : grad(j, c) * projection[j * rank + k]);
        }
        const int64_t i = tall ? c * rank + k : k * cols + c;
        m[i] = o.beta1 * m[i] + (1 - o.beta1) * r;
        v[i] = o.beta2 * v[i] + (1 - o.beta2) * r * r;
        r_squares += r * r;
        n_squares += std::pow(m[i] / (std::sqrt(v[i]) + o.eps), 2);
      }
      factor[c] = std::sqrt(n_squares) / (std::sqrt(r_squares) + 1e-8);
    }
    std::vector<double> u(rows * cols);
    double squares = 0;
    for (int64_t i = 0; i < rows * cols; ++i) {
      u[i] = scale * grad(i / cols, i % cols) * factor[tall ? i / cols : i % cols];
      squares += u[i] * u[i];
    }
    const double norm = std::sqrt(squares);
    const double limit = last > 0 ? std::max(norm / (last + 1e-8), 1.01) / 1.01 : 1;
    last = norm / limit;
    const double t = static_cast<double>(o.step);
    const double rate = o.learning_rate * std::sqrt(1 - std::pow(o.beta2, t)) / (1 - std::pow(o.beta1, t));
    for (int64_t i = 0; i < rows * cols; ++i) {
      p[i] -= rate * std::sqrt(o.scale) * u[i] / limit;
      p[i] -= o.learning_rate * o.weight_decay * p[i];
    }
  }
};

TEST(ApolloTest, MatchesReferenceForAnySizeAndStride) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 0}, {1, 1}, {1, 6}, {6, 1}, {13, 7}, {7, 13}, {40, 40}}) {
    TestMatrix param = TestMatrix::Random(rows, cols, 1);
    ApolloOptions options = {.learning_rate = 1e-2, .weight_decay = 0.05, .scale = 2};
    options.projection_steps = 3;
    options.rank = 3;
    State state(rows, cols, options.rank);
    Reference reference = {param.To<double>(), Wide(state.m), Wide(state.v)};
    for (options.step = 1; options.step <= 7; ++options.step) {
      const TestMatrix grad = TestMatrix::Random(rows, cols, 10 + options.step, 0.1f * options.step);
      const std::vector<float> projection = Projection(options, rows, cols);
      state.Update(grad.view(), 0.5f, projection, options, param.view());
      reference.Step(grad, 0.5, projection, options);
    }
    // A factor is a quotient of norms: a small R makes it large, so the updates carry some 1e3 roundings.
    ExpectAllNear(param.Values(), reference.p, 1e3 * kFloatEpsilon, "param");
    ExpectAllNear(state.m, reference.m, 100 * kFloatEpsilon, "m");
    ExpectAllNear(state.v, reference.v, 100 * kFloatEpsilon, "v");
    EXPECT_TRUE(param.PaddingIntact() && state.scratch.GuardIntact());
  }
}

TEST(ApolloTest, ProjectionIsNewEveryProjectionSteps) {
  ApolloOptions options = {.rank = 16, .seed = 5, .stream = 2};
  options.projection_steps = 4;
  const std::vector<float> first = Projection(options, 300, 200);
  ASSERT_EQ(first.size(), 16u * 200);
  double squares = 0;
  for (const float value : first) squares += value * value;
  // Variance 1 / rank: 3,200 squares average within five standard errors.
  EXPECT_NEAR(squares / 3200, 1.0 / 16, 5 * std::sqrt(2.0 / 3200) / 16);
  options.step = 4;
  EXPECT_EQ(Projection(options, 300, 200), first);
  options.step = 5;
  EXPECT_NE(Projection(options, 300, 200), first);
  options.step = 1;
  options.stream = 3;
  EXPECT_NE(Projection(options, 300, 200), first);
}

TEST(ApolloTest, SameBitsForAnyThreadCount) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{403, 301}, {301, 403}}) {
    const TestMatrix grad = TestMatrix::Random(rows, cols, 1);
    ExpectSameBitsForAnyThreadCount([&, rows = rows, cols = cols] {
      TestMatrix param = TestMatrix::Random(rows, cols, 2);
      ApolloOptions options = {.weight_decay = 0.1, .rank = 33};
      State state(rows, cols, options.rank);
      for (options.step = 1; options.step <= 3; ++options.step) {
        state.Update(grad.view(), 0.5f, Projection(options, rows, cols), options, param.view());
      }
      return Concatenate(Concatenate(param.Values(), state.m), state.v);
    });
  }
}

}  // namespace
}  // namespace thimble
