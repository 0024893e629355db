// Matrix products against plain sums in double, for every form, format, CPU level, and odd sizes.
#include "ops/matmul.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "ops/cpu_level.h"
#include "ops/matmul_bf16.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"
#include "tests/ops/test_weight.h"

namespace thimble {
namespace {

enum class Form { kNT, kNN, kTN };
constexpr Form kForms[] = {Form::kNT, Form::kNN, Form::kTN};

// M, N, K of MatMulNT; the other forms use the same names.
struct Shape {
  int64_t m, n, k;
};

std::string Name(Form form, const Shape& s, const std::string& level) {
  const char* names[] = {"NT", "NN", "TN"};
  return std::string(names[static_cast<int>(form)]) + " M " + std::to_string(s.m) + " N " + std::to_string(s.n) +
         " K " + std::to_string(s.k) + " " + level;
}

double Operand(float value, Compute compute) {
  return compute == Compute::kBF16 ? BF16ToFloat(FloatToBF16(value)) : value;
}

// What each form sums: result (i, j) = sum over l < inner of left(i, l) * right(l, j).
struct Problem {
  int64_t rows, cols, inner;
  std::vector<double> left, right;
};

Problem MakeProblem(Form form, const TestMatrix& a, const std::vector<float>& b, const Shape& s, Compute compute) {
  Problem p;
  p.rows = form == Form::kTN ? s.n : s.m;
  p.cols = form == Form::kNT ? s.n : s.k;
  p.inner = form == Form::kNT ? s.k : form == Form::kNN ? s.n : s.m;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t l = 0; l < p.inner; ++l) {
      p.left.push_back(Operand(form == Form::kTN ? a(l, i) : a(i, l), compute));
    }
  }
  // Column after column.
  for (int64_t j = 0; j < p.cols; ++j) {
    for (int64_t l = 0; l < p.inner; ++l) {
      p.right.push_back(Operand(form == Form::kNT ? b[j * s.k + l] : b[l * s.k + j], compute));
    }
  }
  return p;
}

// Compares with sums in double. An element's error is at most the roundings of its longest chain (a block, then the
// blocks; with tiles all terms) times the sum of magnitudes, and two roundings of scale and y.
void ExpectProduct(const Problem& p, const TestMatrix& before, const TestMatrix& after, const MatMulOptions& options,
                   const std::string& what) {
  const int64_t block = options.compute == Compute::kBF16 && HasAmx() ? p.inner + 1 : kMatMulInnerBlock;
  const int64_t blocks = p.inner / block, longest = std::min<int64_t>(p.inner, block);
  const double chain = static_cast<double>(longest + blocks + 4);
  int wrong = 0;
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t j = 0; j < p.cols; ++j) {
      double sum = 0, magnitude = 0;
      for (int64_t l = 0; l < p.inner; ++l) {
        const double product = p.left[i * p.inner + l] * p.right[j * p.inner + l];
        sum += product;
        magnitude += std::abs(product);
      }
      const double start = options.accumulate ? before(i, j) : 0;
      const double expected = options.scale * sum + start;
      const double tolerance = kFloatEpsilon / 2 * chain * (std::abs(options.scale) * magnitude + std::abs(start));
      if (std::abs(after(i, j) - expected) <= tolerance) continue;
      if (++wrong == 1) {
        ADD_FAILURE() << what << ": (" << i << ", " << j << ") is " << after(i, j) << ", expected " << expected
                      << " within " << tolerance;
      }
    }
  }
  EXPECT_EQ(wrong, 0) << what;
  EXPECT_TRUE(after.PaddingIntact()) << what;
}

// Runs one form; `b` is x of TN and ignored otherwise.
void RunForm(Form form, const TestMatrix& a, const WeightView& w, const TestMatrix& b, Matrix y,
             const MatMulOptions& options) {
  TestScratch scratch(MatMulScratchBytes(options.compute, form == Form::kTN ? a.rows() : y.rows, w.cols, w.rows));
  if (form == Form::kNT) MatMulNT(a.view(), w, y, options, scratch.view());
  if (form == Form::kNN) MatMulNN(a.view(), w, y, options, scratch.view());
  if (form == Form::kTN) MatMulTN(a.view(), b.view(), y, options, scratch.view());
  EXPECT_TRUE(scratch.GuardIntact());
}

TestMatrix LeftOf(Form form, const Shape& s) {
  return form == Form::kNT ? TestMatrix::Random(s.m, s.k, 1) : TestMatrix::Random(s.m, s.n, 2);
}

TestMatrix ResultOf(Form form, const Shape& s, uint32_t seed = 5) {
  if (form == Form::kNT) return TestMatrix::Random(s.m, s.n, seed);
  return form == Form::kNN ? TestMatrix::Random(s.m, s.k, seed) : TestMatrix::Random(s.n, s.k, seed);
}

void CheckForm(Form form, const Shape& s, const TestWeight& weight, const MatMulOptions& options) {
  const TestMatrix a = LeftOf(form, s);
  const TestMatrix x = TestMatrix::Random(s.m, s.k, 3);
  const TestMatrix before = ResultOf(form, s);
  const Problem p = MakeProblem(form, a, form == Form::kTN ? x.Values() : weight.Decoded(), s, options.compute);
  ForEachCpuLevel([&](const std::string& level) {
    TestMatrix y = before;
    RunForm(form, a, weight.view(), x, y.view(), options);
    ExpectProduct(p, before, y, options, Name(form, s, level));
  });
}

// Edges of panels and blocks of every level (4 to 14 rows, 12 to 32 columns, 256 inner), vectors of one and two rows.
constexpr Shape kShapes[] = {{1, 1, 1},    {3, 5, 7},     {1, 33, 300},  {2, 97, 515},  {4, 16, 256}, {7, 17, 257},
                             {15, 64, 31}, {115, 35, 64}, {230, 10, 96}, {9, 300, 130}, {33, 3, 520}};

TEST(MatMulTest, MatchesReference) {
  for (const Shape& s : kShapes) {
    const TestWeight weight(Format::kF32, s.n, s.k, 4);
    for (const Form form : kForms) CheckForm(form, s, weight, {});
  }
}

TEST(MatMulTest, AccumulatesAndScales) {
  for (const Shape& s : {Shape{3, 5, 7}, Shape{1, 33, 600}, Shape{20, 40, 600}}) {
    const TestWeight weight(Format::kF32, s.n, s.k, 4);
    for (const Form form : kForms) {
      CheckForm(form, s, weight, {Compute::kF32, true, -0.3f});
      CheckForm(form, s, weight, {Compute::kF32, false, 1.7f});
      CheckForm(form, s, weight, {Compute::kBF16, true, 0.5f});
    }
  }
}

TEST(MatMulTest, RoundsBothOperandsToBf16) {
  for (const Shape& s : kShapes) {
    const TestWeight weight(Format::kF32, s.n, s.k, 4);
    for (const Form form : kForms) CheckForm(form, s, weight, {Compute::kBF16});
  }
}

TEST(MatMulTest, EmptySizes) {
  for (const Shape& s : {Shape{0, 5, 7}, Shape{5, 0, 7}, Shape{5, 7, 0}, Shape{0, 0, 0}}) {
    const TestWeight weight(Format::kF32, s.n, s.k, 4);
    for (const Form form : kForms) {
      CheckForm(form, s, weight, {});
      CheckForm(form, s, weight, {Compute::kF32, true, 2.0f});
    }
  }
}

// Every format gives the bits of the product with its decoded values, at every level, whichever way it is packed:
// rows on block boundaries (decoded straight into panels), rows that are not, short and long blocks, nested statistics.
TEST(MatMulTest, FormatsGiveTheBitsOfTheirDecodedValues) {
  struct Case {
    Shape shape;
    int block_size;
    bool nested;
  };
  for (const Case& c : {Case{{5, 37, 320}, 64, false}, Case{{5, 37, 320}, 64, true}, Case{{2, 40, 512}, 512, false},
                        Case{{9, 33, 256}, 32, true}, Case{{3, 21, 75}, 64, false}, Case{{120, 18, 192}, 128, true}}) {
    for (const Format format : {Format::kBF16, Format::kF16, Format::kNF4, Format::kFP4}) {
      const TestWeight weight(format, c.shape.n, c.shape.k, 4, c.block_size, c.nested);
      const std::vector<float> decoded = weight.Decoded();
      const WeightView plain(decoded.data(), c.shape.n, c.shape.k);
      for (const Form form : {Form::kNT, Form::kNN}) {
        for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
          const TestMatrix a = LeftOf(form, c.shape);
          ForEachCpuLevel([&](const std::string& level) {
            TestMatrix y = ResultOf(form, c.shape), expected = y;
            RunForm(form, a, weight.view(), a, y.view(), {compute});
            RunForm(form, a, plain, a, expected.view(), {compute});
            EXPECT_EQ(y.Values(), expected.Values())
                << InfoOf(format).name << " block " << c.block_size << " " << Name(form, c.shape, level);
          });
        }
      }
    }
  }
}

TEST(MatMulTest, FormatsMatchReference) {
  const Shape s = {10, 35, 300};
  for (const Format format : {Format::kBF16, Format::kF16, Format::kNF4, Format::kFP4}) {
    const TestWeight weight(format, s.n, s.k, 4);
    CheckForm(Form::kNT, s, weight, {});
    CheckForm(Form::kNN, s, weight, {});
  }
}

// Token by token, in groups, or all at once: the same bits.
TEST(MatMulTest, RowsDoNotDependOnTheirNumberOrPlace) {
  const Shape s = {35, 75, 576};
  const TestWeight weight(Format::kNF4, s.n, s.k, 4);
  for (const Form form : {Form::kNT, Form::kNN}) {
    for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
      const MatMulOptions options = {compute, true, 0.7f};
      const TestMatrix a = LeftOf(form, s);
      const ScopedThreads one(1);  // many small calls: starting threads would take most of the time
      ForEachCpuLevel([&](const std::string& level) {
        TestScratch scratch(MatMulScratchBytes(compute, s.m, s.k, s.n));
        TestMatrix all = ResultOf(form, s);
        RunForm(form, a, weight.view(), a, all.view(), options);
        for (const int64_t group : {1, 2, 5, 17}) {
          TestMatrix parts = ResultOf(form, s);
          for (int64_t r = 0; r < s.m; r += group) {
            const int64_t count = std::min(group, s.m - r);
            const ConstMatrix rows = a.view().Rows(r, count);
            const Matrix y = parts.view().Rows(r, count);
            if (form == Form::kNT) MatMulNT(rows, weight.view(), y, options, scratch.view());
            if (form == Form::kNN) MatMulNN(rows, weight.view(), y, options, scratch.view());
          }
          EXPECT_EQ(all.Values(), parts.Values()) << "groups of " << group << " " << Name(form, s, level);
        }
      });
    }
  }
}

TEST(MatMulTest, SameBitsForAnyThreadCount) {
  for (const Shape& s : {Shape{1, 700, 300}, Shape{65, 300, 200}, Shape{200, 20, 300}}) {
    for (const Format format : {Format::kF32, Format::kNF4}) {
      const TestWeight weight(format, s.n, s.k, 4);
      const TestMatrix x = TestMatrix::Random(s.m, s.k, 3);
      for (const Form form : kForms) {
        const TestMatrix a = LeftOf(form, s);
        ExpectSameBitsForAnyThreadCount([&] {
          TestMatrix y = ResultOf(form, s);
          RunForm(form, a, weight.view(), x, y.view(), {Compute::kF32, true, 1.5f});
          return y.Values();
        });
      }
    }
  }
}

// The order of summation is part of the interface: one chain of FMAs a block, then the blocks.
TEST(MatMulTest, SumsInTheDocumentedOrder) {
  if (ActiveCpuLevel() == CpuLevel::kGeneric) GTEST_SKIP() << "no FMA at this level";
  const Shape s = {9, 20, 700};
  const TestWeight weight(Format::kF32, s.n, s.k, 4);
  const std::vector<float> w = weight.Decoded();
  const TestMatrix x = LeftOf(Form::kNT, s);
  TestMatrix y = ResultOf(Form::kNT, s), expected = y;
  const MatMulOptions options = {Compute::kF32, true, 0.3f};
  RunForm(Form::kNT, x, weight.view(), x, y.view(), options);
  for (int64_t i = 0; i < s.m; ++i) {
    for (int64_t j = 0; j < s.n; ++j) {
      for (int64_t k = 0; k < s.k; k += kMatMulInnerBlock) {
        float sum = 0;
        for (int64_t l = k; l < std::min(s.k, k + kMatMulInnerBlock); ++l) sum = std::fma(x(i, l), w[j * s.k + l], sum);
        expected(i, j) = std::fma(options.scale, sum, expected(i, j));
      }
    }
  }
  EXPECT_EQ(y.Values(), expected.Values());
}

// Panels are padded with copies of other rows: what is not finite must not leave its row or column.
TEST(MatMulTest, NonFiniteValuesStayInTheirRow) {
  const float kNaN = std::numeric_limits<float>::quiet_NaN();
  const Shape s = {7, 19, 40};
  const TestWeight weight(Format::kF32, s.n, s.k, 4);
  for (const Compute compute : {Compute::kF32, Compute::kBF16}) {
    TestMatrix x = LeftOf(Form::kNT, s);
    TestMatrix clean = ResultOf(Form::kNT, s), y = clean;
    RunForm(Form::kNT, x, weight.view(), x, clean.view(), {compute});
    x(6, 3) = kNaN;
    ForEachCpuLevel([&](const std::string& level) {
      RunForm(Form::kNT, x, weight.view(), x, y.view(), {compute});
      for (int64_t i = 0; i < s.m; ++i) {
        for (int64_t j = 0; j < s.n; ++j) EXPECT_EQ(std::isnan(y(i, j)), i == 6) << level;
      }
    });
  }
}

// vdpbf16ps in plain C++, on the active level's panels: what the product does with pairs is tested on every machine.
template <int kR, int kPanels>
void PlainDot(int64_t pairs, const float* left, const float* right, int64_t second, const MatMulTile& tile) {
  const int rows = F32Kernels().rows, cols = F32Kernels().cols;
  const auto half = [](float bits, int upper) {
    uint32_t word;
    std::memcpy(&word, &bits, sizeof(word));
    return BF16ToFloat(static_cast<uint16_t>(upper ? word >> 16 : word));
  };
  for (int64_t i = 0; i < kR; ++i) {
    for (int64_t j = 0; j < tile.count; ++j) {
      float sum = 0;
      for (int64_t k = 0; k < pairs; ++k) {
        const float l = left[k * rows + i], r = right[j / cols * second + k * cols + j % cols];
        sum += half(l, 0) * half(r, 0) + half(l, 1) * half(r, 1);
      }
      float& y = tile.y[i * tile.stride + j];
      y = tile.scale * sum + (tile.add ? y : 0.0f);
    }
  }
}

template <int kR>
void PlainDotTile(int64_t pairs, const float* left, const float* right, const MatMulTile& tile) {
  PlainDot<kR, 1>(pairs, left, right, 0, tile);
}

void PlainPair(float* panel, int64_t depth, int width) {
  for (int64_t k = 0; k < depth; k += 2) {
    for (int c = 0; c < width; ++c) {
      const uint32_t even = FloatToBF16(panel[k * width + c]);
      const uint32_t odd = k + 1 < depth ? FloatToBF16(panel[(k + 1) * width + c]) : 0;
      const uint32_t pair = even | odd << 16;
      std::memcpy(&panel[k / 2 * width + c], &pair, sizeof(pair));
    }
  }
}

template <size_t... kI>
MatMulKernels PlainDotKernels(std::index_sequence<kI...>) {
  MatMulKernels kernels = F32Kernels();
  ((kernels.multiply[kI] = PlainDotTile<kI + 1>), ...);
  kernels.multiply_wide[0] = PlainDot<1, 2>;
  kernels.multiply_wide[1] = PlainDot<2, 2>;
  kernels.pair = PlainPair;
  return kernels;
}

TEST(MatMulTest, PairsMatchReference) {
  const MatMulKernels kernels = PlainDotKernels(std::make_index_sequence<MatMulKernels::kMaxRows>());
  SetBf16KernelsForTest(&kernels);
  const MatMulOptions options = {Compute::kBF16, true, 0.5f};
  for (const Shape& s : kShapes) {
    const TestWeight weight(Format::kNF4, s.n, s.k, 4);
    for (const Form form : kForms) {
      const TestMatrix a = LeftOf(form, s), x = TestMatrix::Random(s.m, s.k, 3), before = ResultOf(form, s);
      TestMatrix y = before;
      RunForm(form, a, weight.view(), x, y.view(), options);
      const std::vector<float> right = form == Form::kTN ? x.Values() : weight.Decoded();
      ExpectProduct(MakeProblem(form, a, right, s, options.compute), before, y, options, Name(form, s, "pairs"));
    }
  }
  SetBf16KernelsForTest(nullptr);
}

TEST(MatMulTest, SelfCheckSeesWrongKernels) {
  const MatMulKernels good = PlainDotKernels(std::make_index_sequence<MatMulKernels::kMaxRows>());
  EXPECT_TRUE(Bf16KernelsAgree(good, F32Kernels()));
  MatMulKernels wrong = good;
  wrong.multiply[2] = PlainDotTile<2>;
  EXPECT_FALSE(Bf16KernelsAgree(wrong, F32Kernels()));
  wrong = good;
  wrong.multiply_wide[1] = PlainDot<1, 2>;
  EXPECT_FALSE(Bf16KernelsAgree(wrong, F32Kernels()));
  wrong = good;
  wrong.pair = [](float*, int64_t, int) {};
  EXPECT_FALSE(Bf16KernelsAgree(wrong, F32Kernels()));
}

// The processor's own products are used where it has them, never distrusted.
TEST(MatMulTest, PathIsTheProcessorsBest) {
  const Bf16Path pairs = HasBf16Dot() ? Bf16Path::kDot : Bf16Path::kRounded;
  EXPECT_EQ(ActiveBf16Path(), HasAmx() ? Bf16Path::kTiles : pairs);
  const bool amx = HasAmx();
  AllowAmxForTest(false);
  EXPECT_EQ(ActiveBf16Path(), pairs);
  EXPECT_EQ(Bf16Kernels() != nullptr, HasBf16Dot());
  AllowAmxForTest(amx);
}

TEST(MatMulTest, ScratchIsBounded) {
  for (const int threads : {1, 2, 16}) {
    ScopedThreads scoped(threads);
    EXPECT_GT(MatMulScratchBytes(), 0);
    EXPECT_LE(MatMulScratchBytes(), (1 + threads) * (int64_t{1} << 19));
    const int64_t bytes = MatMulScratchBytes(Compute::kBF16, 100000, 100000, 100000);
    if (HasAmx()) {
      EXPECT_EQ(bytes, (int64_t{4} << 20) + threads * (int64_t{9} << 16));
    } else {
      EXPECT_EQ(bytes, MatMulScratchBytes());
    }
  }
}

}  // namespace
}  // namespace thimble
