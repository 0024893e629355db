#include "ops/scaled_gradient.h"

#include <algorithm>
#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/scaled_gradient.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

struct SquareTerm {
  const float* g;
  const float* col;
  float row;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t i) const {
    auto u = hn::Mul(hn::LoadU(d, g + i), hn::Set(d, row));
    if (col != nullptr) u = hn::Mul(u, hn::LoadU(d, col + i));
    return hn::Mul(u, u);
  }
  HWY_INLINE float At(int64_t i) const {
    float u = g[i] * row;
    if (col != nullptr) u *= col[i];
    return u * u;
  }
};

double RowSquares(const float* g, float row, const float* col, int64_t n) {
  return SumInBlocks(F32(), n, SquareTerm{g, col, row});
}

// A span of columns of one row.
void AddSquares(const float* g, float scale, int64_t n, double* sums) {
  int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::CappedTag<double, 8> d;
  const hn::Rebind<float, decltype(d)> df;
  const int64_t lanes = hn::Lanes(d);
  for (; c + lanes <= n; c += lanes) {
    const auto v = hn::PromoteTo(d, hn::Mul(hn::LoadU(df, g + c), hn::Set(df, scale)));
    hn::StoreU(hn::Add(hn::LoadU(d, sums + c), hn::Mul(v, v)), d, sums + c);
  }
#endif
  for (; c < n; ++c) {
    const double v = g[c] * scale;
    sums[c] += v * v;
  }
}

void ApplyRow(const float* g, float row, const float* col, float decay, int64_t n, float* param) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const auto update = [&](hn::Vec<F32> vg, hn::Vec<F32> vcol, hn::Vec<F32> vp) HWY_ATTR {
    const auto u = hn::Mul(hn::Mul(vg, hn::Set(d, row)), vcol);
    return hn::Sub(hn::Mul(vp, hn::Set(d, decay)), u);
  };
  const auto one = hn::Set(d, 1.0f);
  int64_t c = 0;
  for (; c + lanes <= n; c += lanes) {
    const auto vcol = col != nullptr ? hn::LoadU(d, col + c) : one;
    hn::StoreU(update(hn::LoadU(d, g + c), vcol, hn::LoadU(d, param + c)), d, param + c);
  }
  if (c < n) {
    const int64_t part = n - c;
    const auto vcol = col != nullptr ? LoadPart(d, col + c, part) : one;
    StorePart(update(LoadPart(d, g + c, part), vcol, LoadPart(d, param + c, part)), d, param + c, part);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(RowSquares);
HWY_EXPORT(AddSquares);
HWY_EXPORT(ApplyRow);

// Columns that a thread sums at a time: their sums stay in the first-level cache.
constexpr int64_t kColumnSpan = 512;

}  // namespace

void ScaledRowSquares(ConstMatrix g, const float* row, const float* col, double* sums) {
  if (g.cols == 0) std::fill_n(sums, g.rows, 0.0);
  ParallelRows(g.rows, g.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      sums[r] = HWY_DYNAMIC_DISPATCH(RowSquares)(g.row(r), row != nullptr ? row[r] : 1.0f, col, g.cols);
    }
  });
}

void AddColumnSquares(ConstMatrix g, float scale, double* sums) {
  ParallelFor((g.cols + kColumnSpan - 1) / kColumnSpan, [&](int64_t span, int) {
    const int64_t first = span * kColumnSpan;
    const int64_t count = std::min(kColumnSpan, g.cols - first);
    for (int64_t r = 0; r < g.rows; ++r) {
      HWY_DYNAMIC_DISPATCH(AddSquares)(g.row(r) + first, scale, count, sums + first);
    }
  });
}

void ApplyScaledGradient(ConstMatrix g, const float* row, const float* col, float decay, Matrix param) {
  CHECK(g.rows == param.rows && g.cols == param.cols);
  ParallelRows(g.rows, g.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      HWY_DYNAMIC_DISPATCH(ApplyRow)
      (g.row(r), row != nullptr ? row[r] : 1.0f, col, decay, g.cols, param.row(r));
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
