#include "ops/bias.h"

#include <algorithm>
#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/bias.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

void AddBias(const float* b, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, y + i), hn::LoadU(d, b + i)), d, y + i);
  for (; i < n; ++i) y[i] += b[i];
}

// sums[0..n) = the sums over `rows` rows of x.
void SumRows(const float* x, int64_t stride, int64_t rows, int64_t n, float* sums) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  std::fill_n(sums, n, 0.0f);
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const float *x0 = x + row * stride, *x1 = x0 + stride, *x2 = x1 + stride, *x3 = x2 + stride;
    int64_t i = 0;
    for (; i + lanes <= n; i += lanes) {
      const auto four = hn::Add(hn::Add(hn::LoadU(d, x0 + i), hn::LoadU(d, x1 + i)),
                                hn::Add(hn::LoadU(d, x2 + i), hn::LoadU(d, x3 + i)));
      hn::StoreU(hn::Add(hn::LoadU(d, sums + i), four), d, sums + i);
    }
    for (; i < n; ++i) sums[i] += (x0[i] + x1[i]) + (x2[i] + x3[i]);
  }
  for (; row < rows; ++row) {
    const float* x0 = x + row * stride;
    for (int64_t i = 0; i < n; ++i) sums[i] += x0[i];
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(AddBias);
HWY_EXPORT(SumRows);

constexpr int64_t kStrip = 256;  // columns of one task: 1 KiB a row, and sums that stay in the first-level cache
constexpr int64_t kRowBlock = 64;

}  // namespace

void BiasForward(ConstVector b, Matrix y) {
  CHECK_EQ(b.size, y.cols);
  ParallelRows(y.rows, y.cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) HWY_DYNAMIC_DISPATCH(AddBias)(b.data, b.size, y.row(row));
  });
}

void BiasBackward(ConstMatrix dy, Vector db) {
  CHECK_EQ(db.size, dy.cols);
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
        HWY_DYNAMIC_DISPATCH(SumRows)(dy.row(row) + col, dy.stride, std::min(kRowBlock, dy.rows - row), n, sums);
        for (int64_t i = 0; i < n; ++i) totals[i] += sums[i];
      }
      for (int64_t i = 0; i < n; ++i) db[col + i] += static_cast<float>(totals[i]);
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
