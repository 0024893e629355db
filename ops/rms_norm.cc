#include "ops/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rms_norm.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

struct Square {
  const float* x;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t i) const {
    const auto v = hn::LoadU(d, x + i);
    return hn::Mul(v, v);
  }
  float At(int64_t i) const { return x[i] * x[i]; }
};

struct TripleProduct {
  const float *x, *w, *dy;
  template <class D>
  HWY_INLINE hn::Vec<D> operator()(D d, int64_t i) const {
    return hn::Mul(hn::Mul(hn::LoadU(d, dy + i), hn::LoadU(d, w + i)), hn::LoadU(d, x + i));
  }
  float At(int64_t i) const { return dy[i] * w[i] * x[i]; }
};

void ForwardRow(const float* x, const float* w, int64_t dim, float eps, float* y, float* rstd) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const float r = static_cast<float>(1 / std::sqrt(SumInBlocks(d, dim, Square{x}) / dim + eps));
  *rstd = r;
  int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    hn::StoreU(hn::Mul(hn::Mul(hn::LoadU(d, x + i), hn::Set(d, r)), hn::LoadU(d, w + i)), d, y + i);
  }
  for (; i < dim; ++i) y[i] = x[i] * r * w[i];
}

// dx = dy w r - x c, c = r^3 / dim * sum(dy w x); dw += dy x r when dw is not null.
void BackwardRow(const float* x, const float* w, float r, const float* dy, int64_t dim, float* dx, float* dw) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const double sum = SumInBlocks(d, dim, TripleProduct{x, w, dy});
  const float c = static_cast<float>(sum * r * r * r / dim);
  const auto vr = hn::Set(d, r), vc = hn::Set(d, c);
  int64_t i = 0;
  for (; i + lanes <= dim; i += lanes) {
    const auto vx = hn::LoadU(d, x + i), vdy = hn::LoadU(d, dy + i);
    if (dw != nullptr) hn::StoreU(hn::Add(hn::LoadU(d, dw + i), hn::Mul(vdy, hn::Mul(vx, vr))), d, dw + i);
    hn::StoreU(hn::Sub(hn::Mul(hn::Mul(vdy, hn::LoadU(d, w + i)), vr), hn::Mul(vx, vc)), d, dx + i);
  }
  for (; i < dim; ++i) {
    const float xi = x[i], dyi = dy[i];
    if (dw != nullptr) dw[i] += dyi * (xi * r);
    dx[i] = dyi * w[i] * r - xi * c;
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(ForwardRow);
HWY_EXPORT(BackwardRow);

constexpr int64_t kMaxParts = 64;

// dw is summed over parts of this many rows each, then over the parts in double: the same cut for any thread count.
int64_t RowsPerPart(int64_t rows, int64_t dim) {
  const int64_t least = std::max<int64_t>(16, kElementGrain / std::max<int64_t>(dim, 1));
  return std::max(least, (rows + kMaxParts - 1) / kMaxParts);
}
int64_t Parts(int64_t rows, int64_t dim) {
  const int64_t length = RowsPerPart(rows, dim);
  return (rows + length - 1) / length;
}

}  // namespace

int64_t RmsNormScratchBytes(int64_t rows, int64_t dim) {
  return Parts(rows, dim) * dim * static_cast<int64_t>(sizeof(float));
}

void RmsNormForward(ConstMatrix x, ConstVector w, float eps, Matrix y, Vector rstd) {
  CHECK_EQ(w.size, x.cols);
  CHECK_EQ(rstd.size, x.rows);
  CHECK(y.rows == x.rows && y.cols == x.cols);
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      HWY_DYNAMIC_DISPATCH(ForwardRow)(x.row(row), w.data, x.cols, eps, y.row(row), &rstd[row]);
    }
  });
}

void RmsNormBackward(ConstMatrix x, ConstVector w, ConstVector rstd, ConstMatrix dy, Matrix dx, Vector dw,
                     Scratch scratch) {
  CHECK_EQ(w.size, x.cols);
  CHECK_EQ(rstd.size, x.rows);
  CHECK(dy.rows == x.rows && dy.cols == x.cols && dx.rows == x.rows && dx.cols == x.cols);
  const int64_t dim = x.cols;
  if (dw.data == nullptr) {
    ParallelRows(x.rows, dim, [&](int64_t begin, int64_t end) {
      for (int64_t row = begin; row < end; ++row) {
        HWY_DYNAMIC_DISPATCH(BackwardRow)(x.row(row), w.data, rstd[row], dy.row(row), dim, dx.row(row), nullptr);
      }
    });
    return;
  }
  CHECK_EQ(dw.size, dim);
  CHECK_GE(scratch.bytes, RmsNormScratchBytes(x.rows, dim));
  const int64_t length = RowsPerPart(x.rows, dim), parts = Parts(x.rows, dim);
  float* partial = static_cast<float*>(scratch.data);
  ParallelFor(parts, [&](int64_t part, int) {
    float* sums = partial + part * dim;
    std::fill_n(sums, dim, 0.0f);
    for (int64_t row = part * length; row < std::min(x.rows, (part + 1) * length); ++row) {
      HWY_DYNAMIC_DISPATCH(BackwardRow)(x.row(row), w.data, rstd[row], dy.row(row), dim, dx.row(row), sums);
    }
  });
  for (int64_t c = 0; c < dim; ++c) {
    double sum = 0;
    for (int64_t part = 0; part < parts; ++part) sum += partial[part * dim + c];
    dw[c] += static_cast<float>(sum);
  }
}

}  // namespace thimble
#endif  // HWY_ONCE
