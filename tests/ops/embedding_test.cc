#include "ops/embedding.h"

#include <cstdint>
#include <random>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

std::vector<int32_t> RandomIds(int count, int rows, uint32_t seed) {
  std::mt19937 bits(seed);
  std::vector<int32_t> ids(count);
  for (int32_t& id : ids) id = bits() % rows;
  return ids;
}

TEST(EmbeddingTest, ForwardReadsTheRowsOfAnyPlainFormat) {
  const int rows = 11, cols = 19;
  const TestMatrix table = TestMatrix::Random(rows, cols, 1, 1, 0);
  std::vector<uint16_t> bf16, f16;
  for (const float v : table.Values()) {
    bf16.push_back(FloatToBF16(v));
    f16.push_back(FloatToF16(v));
  }
  const std::vector<int32_t> ids = {0, 10, 3, 3, 7};
  for (const Format format : {Format::kF32, Format::kBF16, Format::kF16}) {
    WeightView weight(table.view().data, rows, cols);
    weight.format = format;
    if (format == Format::kBF16) weight.data = bf16.data();
    if (format == Format::kF16) weight.data = f16.data();
    TestMatrix y(5, cols);
    EmbeddingForward({ids.data(), 5}, weight, y.view());
    for (int t = 0; t < 5; ++t) {
      for (int c = 0; c < cols; ++c) {
        const int at = ids[t] * cols + c;
        const float expected = format == Format::kF32    ? table(ids[t], c)
                               : format == Format::kBF16 ? BF16ToFloat(bf16[at])
                                                         : F16ToFloat(f16[at]);
        ASSERT_EQ(y(t, c), expected);
      }
    }
    EXPECT_TRUE(y.PaddingIntact());
  }
}

TEST(EmbeddingTest, BackwardMatchesComplexStep) {
  for (const int tokens : {0, 1, 7, 30}) {
    for (const int cols : {1, 5, 33}) {
      const int rows = 6;
      const std::vector<int32_t> ids = RandomIds(tokens, rows, 3);
      const TestMatrix dy = TestMatrix::Random(tokens, cols, 2);
      TestMatrix dtable = TestMatrix::Random(rows, cols, 4);
      std::vector<double> expected = dtable.To<double>();
      const std::vector<double> gradient = ComplexStepGradient(
          [&](const std::vector<Complex>& table) {
            std::vector<Complex> y;
            for (const int32_t id : ids) {
              for (int c = 0; c < cols; ++c) y.push_back(table[id * cols + c]);
            }
            return WeightedSum(dy.To<double>(), y);
          },
          TestMatrix::Random(rows, cols, 5).To<double>());
      for (size_t i = 0; i < expected.size(); ++i) expected[i] += gradient[i];
      EmbeddingBackward({ids.data(), tokens}, dy.view(), dtable.view());
      ExpectAllNear(dtable.Values(), expected, (tokens + 1) * kFloatEpsilon * 6 * std::sqrt(tokens + 1.0), "dtable");
      EXPECT_TRUE(dtable.PaddingIntact());
    }
  }
}

TEST(EmbeddingTest, SameBitsForAnyThreadCount) {
  const int tokens = 400, rows = 50, cols = 517;
  const std::vector<int32_t> ids = RandomIds(tokens, rows, 3);
  const TestMatrix dy = TestMatrix::Random(tokens, cols, 2), table = TestMatrix::Random(rows, cols, 1, 1, 0);
  ExpectSameBitsForAnyThreadCount([&] {
    TestMatrix dtable = TestMatrix::Random(rows, cols, 4), y(tokens, cols);
    EmbeddingForward({ids.data(), tokens}, {table.view().data, rows, cols}, y.view());
    EmbeddingBackward({ids.data(), tokens}, dy.view(), dtable.view());
    return Concatenate(dtable.Values(), y.Values());
  });
}

TEST(EmbeddingDeathTest, AnIdOutsideTheTableDies) {
  const std::vector<int32_t> ids = {4};
  const TestMatrix table = TestMatrix::Random(4, 2, 1, 1, 0);
  TestMatrix y(1, 2);
  EXPECT_DEATH(EmbeddingForward({ids.data(), 1}, {table.view().data, 4, 2}, y.view()), "token 0 has id 4");
}

}  // namespace
}  // namespace thimble
