#include "ops/dora.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "ops/check.h"
#include "ops/row_split.h"
#include "ops/scratch_buffer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/dora.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

struct SquareOfSum {
  const float *a, *b;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t i) const {
    const auto v = hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i));
    return hn::Mul(v, v);
  }
  float At(int64_t i) const { return (a[i] + b[i]) * (a[i] + b[i]); }
};

// sum (a + b)^2.
double SumSquaresOfSum(const float* a, const float* b, int64_t n) { return SumInBlocks(F32(), n, SquareOfSum{a, b}); }

// y = k * x + (add ? y : 0), element by element.
void MultiplyRow(const float* k, const float* x, int64_t n, bool add, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    auto v = hn::Mul(hn::LoadU(d, k + i), hn::LoadU(d, x + i));
    if (add) v = hn::Add(hn::LoadU(d, y + i), v);
    hn::StoreU(v, d, y + i);
  }
  for (; i < n; ++i) y[i] = add ? y[i] + k[i] * x[i] : k[i] * x[i];
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(SumSquaresOfSum);
HWY_EXPORT(MultiplyRow);

constexpr int64_t kNormRows = 64;        // rows of W + scale b a at a time
constexpr int64_t kDecode = 1024;        // columns of W decoded at a time, on the stack
constexpr int64_t kTileBytes = 2 << 20;  // x_d, W x_d and k dy of one tile of tokens
constexpr int64_t kStrip = 256;          // columns of one task
constexpr int64_t kRowBlock = 64;        // rows summed in float before the sum goes on in double
constexpr int64_t kFloat = sizeof(float);

Matrix TakeMatrix(Scratch* scratch, int64_t rows, int64_t cols) {
  return Matrix(TakeScratch<float>(scratch, rows * cols), rows, cols);
}

WeightView Weight(ConstMatrix matrix) {
  CHECK(matrix.stride == matrix.cols || matrix.rows <= 1) << "gaps between rows";
  return {matrix.data, matrix.rows, matrix.cols};
}

// A part of kMatMulInnerBlock, so that sums over tokens are cut alike wherever a tile of tokens begins.
int64_t TileRows(int64_t rows, int64_t in, int64_t out) {
  const int64_t fitting = kTileBytes / (kFloat * std::max<int64_t>(in + 2 * out, 1));
  const auto whole = std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(fitting, 16, kMatMulInnerBlock)));
  return std::min(rows, static_cast<int64_t>(whole));
}

// k = (m - base) / norm for every column, k [cols].
void Ratio(ConstVector m, ConstVector norm, bool minus_one, Matrix k) {
  for (int64_t o = 0; o < m.size; ++o) k(0, o) = minus_one ? (m[o] - norm[o]) / norm[o] : m[o] / norm[o];
}

void MultiplyRows(const float* k, ConstMatrix x, bool add, Matrix y) {
  ParallelRows(y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(MultiplyRow)(k, x.row(t), y.cols, add, y.row(t));
  });
}

// dm += column sums of dy * z / norm.
void AccumulateMagnitude(ConstVector norm, ConstMatrix z, ConstMatrix dy, Vector dm) {
  const int64_t strips = (dy.cols + kStrip - 1) / kStrip;
  const int64_t grain = std::max<int64_t>(1, kElementGrain / (kStrip * std::max<int64_t>(dy.rows, 1)));
  ParallelRanges(strips, grain, [&](int64_t strip_begin, int64_t strip_end) {
    float sums[kStrip];
    double totals[kStrip];
    for (int64_t strip = strip_begin; strip < strip_end; ++strip) {
      const int64_t col = strip * kStrip;
      const int64_t n = std::min(kStrip, dy.cols - col);
      std::fill_n(totals, n, 0.0);
      for (int64_t row = 0; row < dy.rows; row += kRowBlock) {
        std::fill_n(sums, n, 0.0f);
        for (int64_t t = row; t < std::min(dy.rows, row + kRowBlock); ++t) {
          HWY_DYNAMIC_DISPATCH(MultiplyRow)(dy.row(t) + col, z.row(t) + col, n, true, sums);
        }
        for (int64_t i = 0; i < n; ++i) totals[i] += sums[i];
      }
      for (int64_t i = 0; i < n; ++i) dm[col + i] += static_cast<float>(totals[i] / norm[col + i]);
    }
  });
}

}  // namespace

int64_t DoraNormScratchBytes(int64_t in) { return Aligned(kNormRows * in * kFloat) + MatMulScratchBytes(); }

void DoraNorm(const WeightView& w, ConstMatrix a, ConstMatrix b, float scale, Vector norm, Scratch scratch) {
  CHECK(a.cols == w.cols && b.cols == a.rows && b.rows == w.rows && norm.size == w.rows);
  const Matrix tile = TakeMatrix(&scratch, kNormRows, w.cols);
  for (int64_t first = 0; first < w.rows; first += kNormRows) {
    const Matrix product = tile.Rows(0, std::min(kNormRows, w.rows - first));
    MatMulNN(b.Rows(first, product.rows), Weight(a), product, {.scale = scale}, scratch);
    ParallelFor(product.rows, [&](int64_t r, int) {
      float values[kDecode];
      double sum = 0;
      for (int64_t col = 0; col < w.cols; col += kDecode) {
        const int64_t n = std::min(kDecode, w.cols - col);
        DecodeRow(w, first + r, col, n, values);
        sum += HWY_DYNAMIC_DISPATCH(SumSquaresOfSum)(values, product.row(r) + col, n);
      }
      norm[first + r] = static_cast<float>(std::sqrt(sum));
    });
  }
}

void DoraForward(ConstVector m, ConstVector norm, ConstMatrix z, Matrix y) {
  CHECK(m.size == y.cols && norm.size == y.cols && z.rows == y.rows && z.cols == y.cols);
  ParallelRows(y.rows, y.cols, [&](int64_t begin, int64_t end) {
    float k[kStrip];
    for (int64_t col = 0; col < y.cols; col += kStrip) {
      const int64_t n = std::min(kStrip, y.cols - col);
      for (int64_t i = 0; i < n; ++i) k[i] = m[col + i] / norm[col + i];
      for (int64_t t = begin; t < end; ++t) {
        HWY_DYNAMIC_DISPATCH(MultiplyRow)(k, z.row(t) + col, n, false, y.row(t) + col);
      }
    }
  });
}

void DoraBackward(ConstVector m, ConstVector norm, ConstMatrix z, ConstMatrix dy, Matrix dz, Vector dm) {
  CHECK(m.size == dy.cols && norm.size == dy.cols && dz.rows == dy.rows && dz.cols == dy.cols);
  if (dm.data != nullptr) {
    CHECK(dm.size == dy.cols && z.rows == dy.rows && z.cols == dy.cols);
    AccumulateMagnitude(norm, z, dy, dm);
  }
  DoraForward(m, norm, dy, dz);
}

int64_t DoraDropoutScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out, int64_t rank) {
  const int64_t tile = TileRows(rows, in, out);
  const int64_t products =
      std::max({MatMulScratchBytes(compute, tile, in, out), MatMulScratchBytes(compute, tile, in, rank),
                MatMulScratchBytes(compute, tile, rank, out)});
  return Aligned(tile * in * kFloat) + 2 * Aligned(tile * out * kFloat) + Aligned(tile * rank * kFloat) +
         2 * Aligned(out * kFloat) + products;
}

void DoraDropoutForward(ConstMatrix x, const WeightView& w, ConstMatrix a, ConstMatrix b, ConstVector m,
                        ConstVector norm, float scale, const LoraDropout& dropout, Compute compute, Matrix xa, Matrix y,
                        Scratch scratch) {
  CHECK(w.cols == x.cols && w.rows == y.cols && a.cols == x.cols && b.cols == a.rows && b.rows == y.cols);
  CHECK(m.size == y.cols && norm.size == y.cols && xa.rows == x.rows && xa.cols == a.rows && y.rows == x.rows);
  const int64_t tile = TileRows(x.rows, x.cols, y.cols);
  const Matrix masked = TakeMatrix(&scratch, tile, x.cols), product = TakeMatrix(&scratch, tile, y.cols);
  const Matrix k = TakeMatrix(&scratch, 1, y.cols), k_minus_one = TakeMatrix(&scratch, 1, y.cols);
  Ratio(m, norm, false, k);
  Ratio(m, norm, true, k_minus_one);
  for (int64_t row = 0; row < x.rows; row += tile) {
    const int64_t count = std::min(tile, x.rows - row);
    const Matrix xd = masked.Rows(0, count), z = product.Rows(0, count), y_tile = y.Rows(row, count);
    ApplyLoraDropout(x.Rows(row, count), dropout, row, xd);
    MatMulNT(xd, w, z, {.compute = compute}, scratch);
    MultiplyRows(k_minus_one.data, z, true, y_tile);
    MatMulNT(xd, Weight(a), xa.Rows(row, count), {.compute = compute}, scratch);
    MatMulNT(xa.Rows(row, count), Weight(b), z, {.compute = compute, .scale = scale}, scratch);
    MultiplyRows(k.data, z, true, y_tile);
  }
}

void DoraDropoutBackward(ConstMatrix x, const WeightView& w, ConstMatrix a, ConstMatrix b, ConstVector m,
                         ConstVector norm, float scale, const LoraDropout& dropout, Compute compute, ConstMatrix xa,
                         ConstMatrix dy, Matrix dx, Matrix da, Matrix db, Vector dm, Scratch scratch) {
  CHECK(w.cols == x.cols && w.rows == dy.cols && a.cols == x.cols && b.cols == a.rows && b.rows == dy.cols);
  CHECK(m.size == dy.cols && norm.size == dy.cols && dm.size == dy.cols && dy.rows == x.rows);
  CHECK(xa.rows == x.rows && xa.cols == a.rows);
  const int64_t tile = TileRows(x.rows, x.cols, dy.cols);
  const Matrix masked = TakeMatrix(&scratch, tile, x.cols), product = TakeMatrix(&scratch, tile, dy.cols),
               scaled = TakeMatrix(&scratch, tile, dy.cols), dxa_all = TakeMatrix(&scratch, tile, a.rows);
  const Matrix k = TakeMatrix(&scratch, 1, dy.cols), k_minus_one = TakeMatrix(&scratch, 1, dy.cols);
  Ratio(m, norm, false, k);
  Ratio(m, norm, true, k_minus_one);
  const MatMulOptions add = {.compute = compute, .accumulate = true};
  const MatMulOptions add_scaled = {.compute = compute, .accumulate = true, .scale = scale};
  for (int64_t row = 0; row < x.rows; row += tile) {
    const int64_t count = std::min(tile, x.rows - row);
    const Matrix xd = masked.Rows(0, count), z = product.Rows(0, count), g = scaled.Rows(0, count),
                 dxa = dxa_all.Rows(0, count);
    const ConstMatrix dy_tile = dy.Rows(row, count), xa_tile = xa.Rows(row, count);
    // dm from z = W x_d + scale b a x_d.
    ApplyLoraDropout(x.Rows(row, count), dropout, row, xd);
    MatMulNT(xd, w, z, {.compute = compute}, scratch);
    MatMulNT(xa_tile, Weight(b), z, add_scaled, scratch);
    AccumulateMagnitude(norm, z, dy_tile, dm);
    // The adapter's branch, whose output gradient is k dy.
    MultiplyRows(k.data, dy_tile, false, g);
    MatMulNN(g, Weight(b), dxa, {.compute = compute, .scale = scale}, scratch);
    MatMulTN(g, xa_tile, db, add_scaled, scratch);
    MatMulTN(dxa, xd, da, add, scratch);
    if (dx.data == nullptr) continue;
    // d x_d = (k - 1) dy W + dxa a, then back through the mask.
    MultiplyRows(k_minus_one.data, dy_tile, false, g);
    MatMulNN(g, w, xd, {.compute = compute}, scratch);
    MatMulNN(dxa, Weight(a), xd, add, scratch);
    AddLoraDropout(xd, dropout, row, dx.Rows(row, count));
  }
}

}  // namespace thimble
#endif  // HWY_ONCE
