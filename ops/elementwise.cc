#include "ops/elementwise.h"

#include <cstdint>
#include <cstring>

#include "ops/check.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/elementwise.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

void AddSpan(const float* a, const float* b, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Add(hn::LoadU(d, a + i), hn::LoadU(d, b + i)), d, y + i);
  for (; i < n; ++i) y[i] = a[i] + b[i];
}

void ScaleSpan(float factor, const float* x, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Mul(hn::Set(d, factor), hn::LoadU(d, x + i)), d, y + i);
  for (; i < n; ++i) y[i] = factor * x[i];
}

void FillSpan(float value, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(hn::Set(d, value), d, y + i);
  for (; i < n; ++i) y[i] = value;
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(AddSpan);
HWY_EXPORT(ScaleSpan);
HWY_EXPORT(FillSpan);

void CheckSameShape(ConstMatrix x, ConstMatrix y) {
  CHECK_EQ(x.rows, y.rows);
  CHECK_EQ(x.cols, y.cols);
}

}  // namespace

void Add(ConstMatrix a, ConstMatrix b, Matrix y) {
  CheckSameShape(a, y);
  CheckSameShape(b, y);
  const bool contiguous = a.stride == a.cols && b.stride == b.cols && y.stride == y.cols;
  ParallelSpans(y.rows, y.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    HWY_DYNAMIC_DISPATCH(AddSpan)(a.row(row) + col, b.row(row) + col, n, y.row(row) + col);
  });
}

void Scale(float factor, ConstMatrix x, Matrix y) {
  CheckSameShape(x, y);
  const bool contiguous = x.stride == x.cols && y.stride == y.cols;
  ParallelSpans(y.rows, y.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    HWY_DYNAMIC_DISPATCH(ScaleSpan)(factor, x.row(row) + col, n, y.row(row) + col);
  });
}

void Fill(float value, Matrix y) {
  ParallelSpans(y.rows, y.cols, y.stride == y.cols, [&](int64_t row, int64_t col, int64_t n) {
    HWY_DYNAMIC_DISPATCH(FillSpan)(value, n, y.row(row) + col);
  });
}

void Copy(ConstMatrix x, Matrix y) {
  CheckSameShape(x, y);
  const bool contiguous = x.stride == x.cols && y.stride == y.cols;
  ParallelSpans(y.rows, y.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    std::memmove(y.row(row) + col, x.row(row) + col, n * sizeof(float));
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
