#include "ops/swiglu.h"

#include <cstdint>

#include "ops/check.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/swiglu.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE hn::Vec<D> Forward(D d, hn::Vec<D> gate, hn::Vec<D> up) {
  return hn::Mul(hn::Mul(gate, Sigmoid(d, gate)), up);
}

template <class D>
HWY_INLINE void Backward(D d, hn::Vec<D> gate, hn::Vec<D> up, hn::Vec<D> dy, hn::Vec<D>* dgate, hn::Vec<D>* dup) {
  const auto one = hn::Set(d, 1.0f);
  const auto s = Sigmoid(d, gate);
  *dup = hn::Mul(dy, hn::Mul(gate, s));
  *dgate = hn::Mul(hn::Mul(dy, up), hn::Mul(s, hn::Add(one, hn::Mul(gate, hn::Sub(one, s)))));
}

void ForwardSpan(const float* gate, const float* up, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) hn::StoreU(Forward(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, y + i);
  if (i < n) StorePart(Forward(d, LoadPart(d, gate + i, n - i), LoadPart(d, up + i, n - i)), d, y + i, n - i);
}

void BackwardSpan(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  auto dg = hn::Zero(d), du = dg;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Backward(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i), hn::LoadU(d, dy + i), &dg, &du);
    hn::StoreU(dg, d, dgate + i);
    hn::StoreU(du, d, dup + i);
  }
  if (i < n) {
    const int64_t part = n - i;
    Backward(d, LoadPart(d, gate + i, part), LoadPart(d, up + i, part), LoadPart(d, dy + i, part), &dg, &du);
    StorePart(dg, d, dgate + i, part);
    StorePart(du, d, dup + i, part);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(ForwardSpan);
HWY_EXPORT(BackwardSpan);

void CheckShape(ConstMatrix x, ConstMatrix y) { CHECK(x.rows == y.rows && x.cols == y.cols); }
bool Contiguous(ConstMatrix x) { return x.stride == x.cols; }

}  // namespace

void SwiGLUForward(ConstMatrix gate, ConstMatrix up, Matrix y) {
  CheckShape(gate, y);
  CheckShape(up, y);
  const bool contiguous = Contiguous(gate) && Contiguous(up) && Contiguous(y);
  ParallelSpans(y.rows, y.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    HWY_DYNAMIC_DISPATCH(ForwardSpan)(gate.row(row) + col, up.row(row) + col, n, y.row(row) + col);
  });
}

void SwiGLUBackward(ConstMatrix gate, ConstMatrix up, ConstMatrix dy, Matrix dgate, Matrix dup) {
  CheckShape(gate, dy);
  CheckShape(up, dy);
  CheckShape(dgate, dy);
  CheckShape(dup, dy);
  const bool contiguous = Contiguous(gate) && Contiguous(up) && Contiguous(dy) && Contiguous(dgate) && Contiguous(dup);
  ParallelSpans(dy.rows, dy.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    HWY_DYNAMIC_DISPATCH(BackwardSpan)
    (gate.row(row) + col, up.row(row) + col, dy.row(row) + col, n, dgate.row(row) + col, dup.row(row) + col);
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
