// Products on AMX tiles: against plain sums in double at the edges of tiles, panels, slices and blocks, for every form
// and format.
#include "ops/matmul_amx.h"

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "ops/cpu_level.h"
#include "ops/matmul.h"
#include "tests/ops/gradient_check.h"
#include "tests/ops/test_weight.h"

namespace thimble {
namespace {

enum class Form { kNT, kNN, kTN };
constexpr Form kForms[] = {Form::kNT, Form::kNN, Form::kTN};

// y[rows, cols] over `inner` terms, whatever the form.
struct Shape {
  int64_t rows, cols, inner;
};

double Rounded(float value) { return BF16ToFloat(FloatToBF16(value)); }

// One form's operands in memory, and what they are as a product.
struct Problem {
  Problem(Form form, const Shape& s, Format format, int block_size, bool nested)
      : form(form),
        s(s),
        a(form == Form::kTN ? TestMatrix::Random(s.inner, s.rows, 1) : TestMatrix::Random(s.rows, s.inner, 1)),
        weight(form == Form::kTN ? Format::kF32 : format, form == Form::kNT ? s.cols : s.inner,
               form == Form::kNT ? s.inner : s.cols, 2, block_size, nested),
        decoded(weight.Decoded()),
        before(TestMatrix::Random(s.rows, s.cols, 3)) {}

  double Left(int64_t i, int64_t l) const { return Rounded(form == Form::kTN ? a(l, i) : a(i, l)); }
  double Right(int64_t j, int64_t l) const {
    return Rounded(form == Form::kNT ? decoded[j * s.inner + l] : decoded[l * s.cols + j]);
  }

  TestMatrix Run(const MatMulOptions& options) const {
    TestMatrix y = before;
    TestScratch scratch(HasAmx() ? AmxScratchBytes(s.rows, s.cols, s.inner) : MatMulScratchBytes());
    if (form == Form::kNT) MatMulNT(a.view(), weight.view(), y.view(), options, scratch.view());
    if (form == Form::kNN) MatMulNN(a.view(), weight.view(), y.view(), options, scratch.view());
    if (form == Form::kTN) {
      MatMulTN(a.view(), {decoded.data(), s.inner, s.cols}, y.view(), options, scratch.view());
    }
    EXPECT_TRUE(scratch.GuardIntact());
    EXPECT_TRUE(y.PaddingIntact());
    return y;
  }

  Form form;
  Shape s;
  TestMatrix a;
  TestWeight weight;
  std::vector<float> decoded;
  TestMatrix before;
};

// Every `step`-th element. Each of the `inner` sums and three more operations rounds to 2^-24 of the magnitudes.
void Check(const Problem& p, const MatMulOptions& options, int64_t step, const std::string& what) {
  const TestMatrix y = p.Run(options);
  const double tolerance = static_cast<double>(p.s.inner + 4) * kFloatEpsilon / 2;
  for (int64_t at = 0; at < p.s.rows * p.s.cols; at += step) {
    const int64_t i = at / p.s.cols, j = at % p.s.cols;
    double sum = 0, magnitude = 0;
    for (int64_t l = 0; l < p.s.inner; ++l) {
      const double product = p.Left(i, l) * p.Right(j, l);
      sum += product;
      magnitude += std::abs(product);
    }
    const double start = options.accumulate ? p.before(i, j) : 0;
    ASSERT_NEAR(y(i, j), options.scale * sum + start,
                tolerance * (std::abs(options.scale) * magnitude + std::abs(start)))
        << what << " (" << i << ", " << j << ") of " << p.s.rows << " x " << p.s.cols << ", inner " << p.s.inner;
  }
}

class MatMulAmxTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!HasAmx()) GTEST_SKIP() << "NOT TESTED: no AMX here, or THIMBLE_CPU forbids it";
  }
};

constexpr MatMulOptions kPlain = {Compute::kBF16};
constexpr MatMulOptions kScaledSum = {Compute::kBF16, true, -0.3f};

TEST_F(MatMulAmxTest, SelfCheckPasses) { EXPECT_TRUE(AmxAgrees()); }

TEST_F(MatMulAmxTest, EdgesOfTilesAndSlices) {
  for (const int64_t rows : {1, 15, 16, 17, 32, 33, 65}) {
    for (const int64_t cols : {1, 16, 31, 32, 33, 70}) {
      for (const int64_t inner : {1, 2, 31, 32, 33, 63, 64, 97}) {
        for (const Form form : kForms) {
          const Problem p(form, {rows, cols, inner}, Format::kF32, 64, false);
          Check(p, kPlain, 7, "plain");
          Check(p, kScaledSum, 7, "scaled sum");
        }
      }
    }
  }
}

// More than one slice, block of rows, task of columns and chain of sums.
TEST_F(MatMulAmxTest, SeveralBlocks) {
  for (const Shape& s :
       {Shape{45, 50, 511}, Shape{33, 290, 513}, Shape{530, 40, 1100}, Shape{20, 600, 1030}, Shape{7, 35, 8300}}) {
    for (const Form form : kForms) {
      const Problem p(form, s, Format::kF32, 64, false);
      Check(p, kPlain, 97, "plain");
      Check(p, kScaledSum, 97, "scaled sum");
    }
  }
}

// Blocks that are decoded by table and such that are not; rows that end within a block.
TEST_F(MatMulAmxTest, EveryFormat) {
  struct Case {
    int64_t cols, inner;
    int block_size;
    bool nested;
  };
  for (const Case& c : {Case{64, 320, 64, false}, Case{70, 320, 64, true}, Case{37, 96, 32, true},
                        Case{96, 576, 256, true}, Case{33, 75, 64, false}, Case{33, 75, 64, true}}) {
    for (const Format format : {Format::kBF16, Format::kF16, Format::kNF4, Format::kFP4}) {
      for (const Form form : {Form::kNT, Form::kNN}) {
        const Problem p(form, {35, c.cols, c.inner}, format, c.block_size, c.nested);
        Check(p, kPlain, 11, std::string(InfoOf(format).name));
        const Problem turned(form, {35, c.inner, c.cols}, format, c.block_size, c.nested);
        Check(turned, kPlain, 11, std::string(InfoOf(format).name));
      }
    }
  }
}

TEST_F(MatMulAmxTest, SameBitsForAnyThreadCount) {
  for (const Shape& s : {Shape{1, 700, 600}, Shape{600, 70, 1100}, Shape{200, 20, 300}, Shape{40, 530, 640}}) {
    for (const Form form : kForms) {
      const Problem p(form, s, Format::kNF4, 64, true);
      ExpectSameBitsForAnyThreadCount([&] { return p.Run(kScaledSum).Values(); });
    }
  }
}

// Row by row or all at once: the same bits, over more than one block of rows and slice.
TEST_F(MatMulAmxTest, RowsDoNotDependOnTheirNumberOrPlace) {
  const Problem p(Form::kNT, {530, 40, 1100}, Format::kNF4, 64, true);
  const TestMatrix all = p.Run(kPlain);
  TestScratch scratch(AmxScratchBytes(1, 40, 1100));
  for (const int64_t row : {0, 15, 16, 511, 512, 529}) {
    TestMatrix one = TestMatrix::Random(1, 40, 9);
    MatMulNT(p.a.view().Rows(row, 1), p.weight.view(), one.view(), kPlain, scratch.view());
    for (int64_t j = 0; j < 40; ++j) ASSERT_EQ(one(0, j), all(row, j)) << row << " " << j;
  }
}

// A large result on cache lines is written past the caches: the same bits as one that is not on cache lines.
TEST_F(MatMulAmxTest, LargeResultsOnCacheLines) {
  constexpr int64_t kRows = 530, kCols = 512, kInner = 70;
  const Problem p(Form::kNT, {kRows, kCols, kInner}, Format::kNF4, 64, true);
  const std::vector<float> expected = p.Run({Compute::kBF16, false, 0.5f}).Values();
  std::vector<float> memory(kRows * kCols + 16, -1.0f);
  float* y = memory.data() + (16 - reinterpret_cast<uintptr_t>(memory.data()) / 4 % 16) % 16;
  TestScratch scratch(AmxScratchBytes(kRows, kCols, kInner));
  const MatMulOptions options = {Compute::kBF16, false, 0.5f};
  MatMulNT(p.a.view(), p.weight.view(), {y, kRows, kCols}, options, scratch.view());
  EXPECT_EQ(std::vector<float>(y, y + kRows * kCols), expected);
}

// Switched off, the product is another path's: close, and still right.
TEST_F(MatMulAmxTest, CanBeSwitchedOff) {
  const Problem p(Form::kNT, {40, 50, 600}, Format::kNF4, 64, true);
  const std::vector<float> tiles = p.Run(kPlain).Values();
  AllowAmxForTest(false);
  EXPECT_FALSE(HasAmx());
  Check(p, kPlain, 1, "without AMX");
  AllowAmxForTest(true);
  EXPECT_EQ(p.Run(kPlain).Values(), tiles);
}

}  // namespace
}  // namespace thimble
