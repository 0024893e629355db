#include "ops/lion.h"

#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/lion.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#ifndef THIMBLE_OPS_LION_FACTORS_
#define THIMBLE_OPS_LION_FACTORS_
namespace thimble {
// The step's constants, computed in double, rounded once.
struct LionFactors {
  float grad_scale, decay, learning_rate, beta1, one_minus_beta1, beta2, one_minus_beta2;
};
}  // namespace thimble
#endif  // THIMBLE_OPS_LION_FACTORS_

// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE void Update(D d, const LionFactors& f, hn::Vec<D> grad, hn::Vec<D>* param, hn::Vec<D>* m) {
  const auto g = hn::Mul(grad, hn::Set(d, f.grad_scale));
  const auto direction = hn::Add(hn::Mul(*m, hn::Set(d, f.beta1)), hn::Mul(g, hn::Set(d, f.one_minus_beta1)));
  // lr with the sign of the direction; 0 for 0, NaN for NaN.
  const auto signed_rate = hn::CopySign(hn::Set(d, f.learning_rate), direction);
  const auto change = hn::IfThenElse(hn::Gt(hn::Abs(direction), hn::Zero(d)), signed_rate, direction);
  *param = hn::Sub(hn::Mul(*param, hn::Set(d, f.decay)), change);
  *m = hn::Add(hn::Mul(*m, hn::Set(d, f.beta2)), hn::Mul(g, hn::Set(d, f.one_minus_beta2)));
}

void UpdateSpan(const LionFactors& f, const float* grad, int64_t n, float* param, float* m) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    auto vp = hn::LoadU(d, param + i), vm = hn::LoadU(d, m + i);
    Update(d, f, hn::LoadU(d, grad + i), &vp, &vm);
    hn::StoreU(vp, d, param + i);
    hn::StoreU(vm, d, m + i);
  }
  if (i < n) {
    const int64_t part = n - i;
    auto vp = LoadPart(d, param + i, part), vm = LoadPart(d, m + i, part);
    Update(d, f, LoadPart(d, grad + i, part), &vp, &vm);
    StorePart(vp, d, param + i, part);
    StorePart(vm, d, m + i, part);
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(UpdateSpan);

}  // namespace

void LionUpdate(ConstVector grad, float grad_scale, const LionOptions& options, Vector param, Vector m) {
  CHECK(grad.size == param.size && m.size == param.size);
  const LionFactors factors = {
      .grad_scale = grad_scale,
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .learning_rate = static_cast<float>(options.learning_rate),
      .beta1 = static_cast<float>(options.beta1),
      .one_minus_beta1 = static_cast<float>(1 - options.beta1),
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta2 = static_cast<float>(1 - options.beta2),
  };
  ParallelRanges(param.size, kElementGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(UpdateSpan)
    (factors, grad.data + begin, end - begin, param.data + begin, m.data + begin);
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
