#include "ops/adafactor.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/golden_lines.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

void ExpectNear(const std::vector<float>& found, const std::vector<float>& expected, double relative, double absolute,
                const std::string& what) {
  ASSERT_EQ(found.size(), expected.size()) << what;
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_NEAR(found[i], expected[i], relative * std::abs(expected[i]) + absolute) << what << " " << i;
  }
}

// Six steps of transformers' Adafactor (tests/golden/ops/make_optimizers.py), gradients from 1e-6 to 1e2.
TEST(AdafactorTest, MatchesTransformers) {
  const auto golden = ReadGoldenLines("adafactor.txt");
  ASSERT_EQ(golden.size(), 2u + 6 * 7);
  TestMatrix matrix(5, 7), vector(1, 9);
  for (int64_t i = 0; i < 35; ++i) matrix(i / 7, i % 7) = golden[0].second[i];
  for (int64_t i = 0; i < 9; ++i) vector(0, i) = golden[1].second[i];
  std::vector<float> row(5, 0), col(7, 0), v(9, 0);
  TestScratch scratch(AdafactorScratchBytes(5, 9));
  AdafactorOptions options = {.learning_rate = 3e-2, .weight_decay = 0.1};
  for (options.step = 1; options.step <= 6; ++options.step) {
    const auto* lines = &golden[2 + 7 * (options.step - 1)];
    AdafactorUpdate({lines[0].second.data(), 5, 7}, 1, options, matrix.view(), {row.data(), 5}, {col.data(), 7},
                    scratch.view());
    AdafactorVectorUpdate({lines[1].second.data(), 9}, 1, options, vector.vector(), {v.data(), 9}, scratch.view());
    // An update is at most 0.03 * sqrt(35) and goes through some ten roundings on both sides.
    const double tolerance = 20 * static_cast<double>(options.step) * kFloatEpsilon;
    ExpectNear(matrix.Values(), lines[2].second, tolerance, 0.2 * tolerance, "matrix");
    ExpectNear(row, lines[3].second, tolerance, 0, "row");
    ExpectNear(col, lines[4].second, tolerance, 0, "col");
    ExpectNear(vector.Values(), lines[5].second, tolerance, 0.2 * tolerance, "vector");
    ExpectNear(v, lines[6].second, tolerance, 0, "v");
  }
  EXPECT_TRUE(matrix.PaddingIntact() && vector.PaddingIntact() && scratch.GuardIntact());
}

struct Reference {
  std::vector<double> p, row, col;
  void Step(const TestMatrix& grad, double scale, const AdafactorOptions& o) {
    const int64_t rows = grad.rows(), cols = grad.cols();
    const double beta = 1 - std::pow(static_cast<double>(o.step), -0.8);
    std::vector<double> row_mean(rows, 0), col_mean(cols, 0);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const double u = std::pow(scale * grad(r, c), 2) + 1e-30;
        row_mean[r] += u / static_cast<double>(cols);
        col_mean[c] += u / static_cast<double>(rows);
      }
    }
    double mean = 0;
    for (int64_t r = 0; r < rows; ++r) {
      row[r] = beta * row[r] + (1 - beta) * row_mean[r];
      mean += row[r] / static_cast<double>(rows);
    }
    for (int64_t c = 0; c < cols; ++c) col[c] = beta * col[c] + (1 - beta) * col_mean[c];
    std::vector<double> update(rows * cols);
    double squares = 0;
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        double& u = update[r * cols + c];
        u = scale * grad(r, c) / std::sqrt(row[r] / mean) / std::sqrt(col[c]);
        squares += u * u;
      }
    }
    const double clip = std::max(1.0, std::sqrt(squares / static_cast<double>(rows * cols)));
    for (size_t i = 0; i < p.size(); ++i) {
      p[i] = p[i] * (1 - o.learning_rate * o.weight_decay) - o.learning_rate * update[i] / clip;
    }
  }
};

TEST(AdafactorTest, MatchesReferenceForAnySizeAndStride) {
  for (const auto& [rows, cols] :
       std::vector<std::pair<int64_t, int64_t>>{{0, 3}, {3, 0}, {1, 1}, {1, 5}, {6, 1}, {7, 9}, {16, 33}, {3, 1100}}) {
    TestMatrix param = TestMatrix::Random(rows, cols, 1);
    TestMatrix row(1, rows), col(1, cols);
    Reference reference = {param.To<double>(), std::vector<double>(rows, 0), std::vector<double>(cols, 0)};
    TestScratch scratch(AdafactorScratchBytes(rows, cols));
    AdafactorOptions options = {.learning_rate = 1e-2, .weight_decay = 0.05};
    for (options.step = 1; options.step <= 10; ++options.step) {
      const TestMatrix grad = TestMatrix::Random(rows, cols, 10 + options.step);
      AdafactorUpdate(grad.view(), 0.25f, options, param.view(), row.vector(), col.vector(), scratch.view());
      reference.Step(grad, 0.25, options);
    }
    // Ten steps of at most ten roundings of values up to 4, sums of at most 1024 / 16 terms in float.
    ExpectAllNear(param.Values(), reference.p, 10 * 10 * 4 * kFloatEpsilon, "param");
    ExpectAllNear(row.Values(), reference.row, 80 * kFloatEpsilon * MaxAbs(reference.row), "row");
    ExpectAllNear(col.Values(), reference.col, 80 * kFloatEpsilon * MaxAbs(reference.col), "col");
    EXPECT_TRUE(param.PaddingIntact() && row.PaddingIntact() && col.PaddingIntact() && scratch.GuardIntact());
  }
}

// A matrix of one row has the same means as the vector itself has moments.
TEST(AdafactorTest, VectorIsAMatrixOfOneRow) {
  for (const int64_t n : {0, 1, 9, 1500}) {
    TestMatrix a = TestMatrix::Random(1, n, 1), b = a, row(1, 1), col(1, n), v(1, n);
    TestScratch scratch(AdafactorScratchBytes(1, n));
    AdafactorOptions options = {.learning_rate = 1e-2, .weight_decay = 0.05};
    for (options.step = 1; options.step <= 5; ++options.step) {
      const TestMatrix grad = TestMatrix::Random(1, n, 10 + options.step);
      AdafactorUpdate(grad.view(), 0.25f, options, a.view(), row.vector(), col.vector(), scratch.view());
      AdafactorVectorUpdate(grad.vector(), 0.25f, options, b.vector(), v.vector(), scratch.view());
    }
    ExpectAllNear(b.Values(), a.To<double>(), 20 * 4 * kFloatEpsilon, "param");
    ExpectAllNear(v.Values(), col.To<double>(), 20 * kFloatEpsilon, "v");
  }
}

TEST(AdafactorTest, ZeroGradientsChangeNothing) {
  TestMatrix param = TestMatrix::Random(4, 6, 1), row(1, 4), col(1, 6);
  const std::vector<float> before = param.Values();
  const TestMatrix grad(4, 6);
  TestScratch scratch(AdafactorScratchBytes(4, 6));
  for (int64_t step = 1; step <= 3; ++step) {
    AdafactorUpdate(grad.view(), 1, {.step = step}, param.view(), row.vector(), col.vector(), scratch.view());
  }
  EXPECT_EQ(param.Values(), before);
}

TEST(AdafactorTest, SameBitsForAnyThreadCountAndLevel) {
  for (const auto& [rows, cols] : std::vector<std::pair<int64_t, int64_t>>{{301, 1203}, {1, 100003}}) {
    const TestMatrix grad = TestMatrix::Random(rows, cols, 1);
    const auto run = [&, rows = rows, cols = cols] {
      TestMatrix param = TestMatrix::Random(rows, cols, 2), row(1, rows), col(1, cols, 1);
      TestScratch scratch(AdafactorScratchBytes(rows, cols));
      if (rows == 1) {
        AdafactorVectorUpdate(grad.vector(), 0.5f, {.step = 3}, param.vector(), col.vector(), scratch.view());
      } else {
        AdafactorUpdate(grad.view(), 0.5f, {.step = 3}, param.view(), row.vector(), col.vector(), scratch.view());
      }
      return Concatenate(Concatenate(param.Values(), row.Values()), col.Values());
    };
    ExpectSameBitsForAnyThreadCount(run);
    ExpectSameBitsAtEveryCpuLevel(run);
  }
}

}  // namespace
}  // namespace thimble
