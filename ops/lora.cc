#include "ops/lora.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>

#include "ops/check.h"
#include "ops/random.h"
#include "ops/row_split.h"
#include "ops/scratch_buffer.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/lora.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// y = bits >= threshold ? factor * x : 0, added onto y with `add`.
template <bool kAdd>
HWY_INLINE void MaskSpan(const float* x, const uint32_t* bits, uint32_t threshold, float factor, int64_t n, float* y) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    const auto drop = hn::RebindMask(d, hn::Gt(hn::Set(du, threshold), hn::LoadU(du, bits + i)));
    auto v = hn::IfThenZeroElse(drop, hn::Mul(hn::Set(d, factor), hn::LoadU(d, x + i)));
    if (kAdd) v = hn::Add(hn::LoadU(d, y + i), v);
    hn::StoreU(v, d, y + i);
  }
  for (; i < n; ++i) {
    const float v = bits[i] >= threshold ? factor * x[i] : 0.0f;
    y[i] = kAdd ? y[i] + v : v;
  }
}

void WriteMasked(const float* x, const uint32_t* bits, uint32_t threshold, float factor, int64_t n, float* y) {
  MaskSpan<false>(x, bits, threshold, factor, n, y);
}
void AddMasked(const float* x, const uint32_t* bits, uint32_t threshold, float factor, int64_t n, float* y) {
  MaskSpan<true>(x, bits, threshold, factor, n, y);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(WriteMasked);
HWY_EXPORT(AddMasked);

constexpr int64_t kTileBytes = 1 << 20;

// Rows of dropout(x) held at a time; at least 16, so that a product has rows to work on, and a part of
// kMatMulInnerBlock, so that sums over tokens are cut alike wherever a tile of tokens begins.
int64_t TileRows(int64_t rows, int64_t in) {
  const int64_t fitting = kTileBytes / (static_cast<int64_t>(sizeof(float)) * std::max<int64_t>(in, 1));
  const auto whole = std::bit_floor(static_cast<uint64_t>(std::clamp<int64_t>(fitting, 16, kMatMulInnerBlock)));
  return std::min(rows, static_cast<int64_t>(whole));
}

void Dropout(ConstMatrix x, const LoraDropout& dropout, int64_t first_row, bool add, Matrix y) {
  CHECK(x.rows == y.rows && x.cols == y.cols);
  CHECK(dropout.p >= 0 && dropout.p < 1) << dropout.p;
  const uint32_t threshold = static_cast<uint32_t>(std::lround(static_cast<double>(dropout.p) * 0x1p32));
  const float factor = static_cast<float>(1 / (1 - static_cast<double>(dropout.p)));
  constexpr int64_t kSpan = 1024;
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    uint32_t bits[kSpan];
    for (int64_t row = begin; row < end; ++row) {
      // 2^32 columns a row: rows never share an index.
      const uint64_t index = static_cast<uint64_t>(dropout.first_row + first_row + row) << 32;
      for (int64_t col = 0; col < x.cols; col += kSpan) {
        const int64_t n = std::min(kSpan, x.cols - col);
        RandomBits(dropout.seed, dropout.counter, index + col, n, bits);
        if (add) {
          HWY_DYNAMIC_DISPATCH(AddMasked)(x.row(row) + col, bits, threshold, factor, n, y.row(row) + col);
        } else {
          HWY_DYNAMIC_DISPATCH(WriteMasked)(x.row(row) + col, bits, threshold, factor, n, y.row(row) + col);
        }
      }
    }
  });
}

WeightView Weight(ConstMatrix matrix) {
  CHECK(matrix.stride == matrix.cols || matrix.rows <= 1) << "gaps between rows";
  return {matrix.data, matrix.rows, matrix.cols};
}

}  // namespace

void ApplyLoraDropout(ConstMatrix x, const LoraDropout& dropout, int64_t first_row, Matrix y) {
  Dropout(x, dropout, first_row, false, y);
}

void AddLoraDropout(ConstMatrix x, const LoraDropout& dropout, int64_t first_row, Matrix y) {
  Dropout(x, dropout, first_row, true, y);
}

int64_t LoraScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out, int64_t rank) {
  const int64_t products =
      std::max(MatMulScratchBytes(compute, rows, in, rank), MatMulScratchBytes(compute, rows, rank, out));
  const int64_t floats = rows * rank + TileRows(rows, in) * in;
  return floats * static_cast<int64_t>(sizeof(float)) + 2 * kAlignment + products;
}

void LoraDown(ConstMatrix x, ConstMatrix a, const LoraDropout& dropout, Compute compute, Matrix xa, Scratch scratch) {
  CHECK(a.cols == x.cols && xa.rows == x.rows && xa.cols == a.rows);
  if (dropout.p == 0) {
    MatMulNT(x, Weight(a), xa, {.compute = compute}, scratch);
    return;
  }
  const int64_t tile = TileRows(x.rows, x.cols);
  float* masked = TakeScratch<float>(&scratch, tile * x.cols);
  for (int64_t row = 0; row < x.rows; row += tile) {
    const Matrix xd(masked, std::min(tile, x.rows - row), x.cols);
    ApplyLoraDropout(x.Rows(row, xd.rows), dropout, row, xd);
    MatMulNT(xd, Weight(a), xa.Rows(row, xd.rows), {.compute = compute}, scratch);
  }
}

void LoraUp(ConstMatrix xa, ConstMatrix b, float scale, Compute compute, Matrix y, Scratch scratch) {
  CHECK(b.cols == xa.cols && b.rows == y.cols && y.rows == xa.rows);
  MatMulNT(xa, Weight(b), y, {.compute = compute, .accumulate = true, .scale = scale}, scratch);
}

void LoraForward(ConstMatrix x, ConstMatrix a, ConstMatrix b, float scale, const LoraDropout& dropout, Compute compute,
                 Matrix xa, Matrix y, Scratch scratch) {
  LoraDown(x, a, dropout, compute, xa, scratch);
  LoraUp(xa, b, scale, compute, y, scratch);
}

void LoraBackward(ConstMatrix x, ConstMatrix a, ConstMatrix b, float scale, const LoraDropout& dropout, Compute compute,
                  ConstMatrix xa, ConstMatrix dy, Matrix dx, Matrix da, Matrix db, Scratch scratch) {
  CHECK(a.cols == x.cols && b.cols == a.rows && b.rows == dy.cols && dy.rows == x.rows);
  CHECK(xa.rows == x.rows && xa.cols == a.rows);
  CHECK(da.rows == a.rows && da.cols == a.cols && db.rows == b.rows && db.cols == b.cols);
  const MatMulOptions add = {.compute = compute, .accumulate = true};
  const Matrix dxa(TakeScratch<float>(&scratch, x.rows * a.rows), x.rows, a.rows);
  MatMulNN(dy, Weight(b), dxa, {.compute = compute, .scale = scale}, scratch);
  MatMulTN(dy, xa, db, {.compute = compute, .accumulate = true, .scale = scale}, scratch);
  if (dropout.p == 0) {
    MatMulTN(dxa, x, da, add, scratch);
    if (dx.data != nullptr) MatMulNN(dxa, Weight(a), dx, add, scratch);
    return;
  }
  const int64_t tile = TileRows(x.rows, x.cols);
  float* masked = TakeScratch<float>(&scratch, tile * x.cols);
  for (int64_t row = 0; row < x.rows; row += tile) {
    const Matrix xd(masked, std::min(tile, x.rows - row), x.cols);
    const ConstMatrix dxa_tile = dxa.Rows(row, xd.rows);
    ApplyLoraDropout(x.Rows(row, xd.rows), dropout, row, xd);
    MatMulTN(dxa_tile, xd, da, add, scratch);
    if (dx.data == nullptr) continue;
    MatMulNN(dxa_tile, Weight(a), xd, {.compute = compute}, scratch);
    AddLoraDropout(xd, dropout, row, dx.Rows(row, xd.rows));
  }
}

}  // namespace thimble
#endif  // HWY_ONCE
