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

// An activation a(gate) with its derivative.
struct Silu {
  template <class D>
  static HWY_INLINE hn::Vec<D> Value(D d, hn::Vec<D> gate) {
    return hn::Mul(gate, Sigmoid(d, gate));
  }
  template <class D>
  static HWY_INLINE void Both(D d, hn::Vec<D> gate, hn::Vec<D>* value, hn::Vec<D>* slope) {
    const auto one = hn::Set(d, 1.0f);
    const auto s = Sigmoid(d, gate);
    *value = hn::Mul(gate, s);
    *slope = hn::Mul(s, hn::Add(one, hn::Mul(gate, hn::Sub(one, s))));
  }
};

struct ReluSquared {
  template <class D>
  static HWY_INLINE hn::Vec<D> Value(D d, hn::Vec<D> gate) {
    const auto r = hn::IfThenZeroElse(hn::Lt(gate, hn::Zero(d)), gate);  // NaN stays
    return hn::Mul(r, r);
  }
  template <class D>
  static HWY_INLINE void Both(D d, hn::Vec<D> gate, hn::Vec<D>* value, hn::Vec<D>* slope) {
    const auto r = hn::IfThenZeroElse(hn::Lt(gate, hn::Zero(d)), gate);
    *value = hn::Mul(r, r);
    *slope = hn::Add(r, r);
  }
};

template <class Activation, class D>
HWY_INLINE hn::Vec<D> Forward(D d, hn::Vec<D> gate, hn::Vec<D> up) {
  return hn::Mul(Activation::Value(d, gate), up);
}

template <class Activation, class D>
HWY_INLINE void Backward(D d, hn::Vec<D> gate, hn::Vec<D> up, hn::Vec<D> dy, hn::Vec<D>* dgate, hn::Vec<D>* dup) {
  auto value = hn::Zero(d), slope = value;
  Activation::Both(d, gate, &value, &slope);
  *dup = hn::Mul(dy, value);
  *dgate = hn::Mul(hn::Mul(dy, up), slope);
}

template <class Activation>
void ForwardSpan(const float* gate, const float* up, int64_t n, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    hn::StoreU(Forward<Activation>(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i)), d, y + i);
  if (i < n)
    StorePart(Forward<Activation>(d, LoadPart(d, gate + i, n - i), LoadPart(d, up + i, n - i)), d, y + i, n - i);
}

template <class Activation>
void BackwardSpan(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  auto dg = hn::Zero(d), du = dg;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    Backward<Activation>(d, hn::LoadU(d, gate + i), hn::LoadU(d, up + i), hn::LoadU(d, dy + i), &dg, &du);
    hn::StoreU(dg, d, dgate + i);
    hn::StoreU(du, d, dup + i);
  }
  if (i < n) {
    const int64_t part = n - i;
    Backward<Activation>(d, LoadPart(d, gate + i, part), LoadPart(d, up + i, part), LoadPart(d, dy + i, part), &dg,
                         &du);
    StorePart(dg, d, dgate + i, part);
    StorePart(du, d, dup + i, part);
  }
}

void SiluForward(const float* gate, const float* up, int64_t n, float* y) { ForwardSpan<Silu>(gate, up, n, y); }
void SiluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup) {
  BackwardSpan<Silu>(gate, up, dy, n, dgate, dup);
}
void ReluForward(const float* gate, const float* up, int64_t n, float* y) { ForwardSpan<ReluSquared>(gate, up, n, y); }
void ReluBackward(const float* gate, const float* up, const float* dy, int64_t n, float* dgate, float* dup) {
  BackwardSpan<ReluSquared>(gate, up, dy, n, dgate, dup);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(SiluForward);
HWY_EXPORT(SiluBackward);
HWY_EXPORT(ReluForward);
HWY_EXPORT(ReluBackward);

void CheckShape(ConstMatrix x, ConstMatrix y) { CHECK(x.rows == y.rows && x.cols == y.cols); }
bool Contiguous(ConstMatrix x) { return x.stride == x.cols; }

}  // namespace

void SwiGLUForward(ConstMatrix gate, ConstMatrix up, Matrix y, GateActivation activation) {
  CheckShape(gate, y);
  CheckShape(up, y);
  const bool contiguous = Contiguous(gate) && Contiguous(up) && Contiguous(y);
  const bool silu = activation == GateActivation::kSilu;
  const auto forward = silu ? HWY_DYNAMIC_DISPATCH(SiluForward) : HWY_DYNAMIC_DISPATCH(ReluForward);
  ParallelSpans(y.rows, y.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    forward(gate.row(row) + col, up.row(row) + col, n, y.row(row) + col);
  });
}

void SwiGLUBackward(ConstMatrix gate, ConstMatrix up, ConstMatrix dy, Matrix dgate, Matrix dup,
                    GateActivation activation) {
  CheckShape(gate, dy);
  CheckShape(up, dy);
  CheckShape(dgate, dy);
  CheckShape(dup, dy);
  const bool contiguous = Contiguous(gate) && Contiguous(up) && Contiguous(dy) && Contiguous(dgate) && Contiguous(dup);
  const bool silu = activation == GateActivation::kSilu;
  const auto backward = silu ? HWY_DYNAMIC_DISPATCH(SiluBackward) : HWY_DYNAMIC_DISPATCH(ReluBackward);
  ParallelSpans(dy.rows, dy.cols, contiguous, [&](int64_t row, int64_t col, int64_t n) {
    backward(gate.row(row) + col, up.row(row) + col, dy.row(row) + col, n, dgate.row(row) + col, dup.row(row) + col);
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
