#include "ops/adamw.h"

#include <cmath>
#include <cstdint>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

#ifndef THIMBLE_OPS_ADAMW_FACTORS_
#define THIMBLE_OPS_ADAMW_FACTORS_
namespace thimble {
// The step's constants, computed in double, rounded once.
struct AdamWFactors {
  float grad_scale, decay, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, negative_step_size;
};
}  // namespace thimble
#endif  // THIMBLE_OPS_ADAMW_FACTORS_

// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE void Update(D d, const AdamWFactors& f, hn::Vec<D> grad, hn::Vec<D>* param, hn::Vec<D>* m, hn::Vec<D>* v) {
  const auto g = hn::Mul(grad, hn::Set(d, f.grad_scale));
  *m = hn::Add(*m, hn::Mul(hn::Set(d, f.one_minus_beta1), hn::Sub(g, *m)));
  *v = hn::Add(hn::Mul(*v, hn::Set(d, f.beta2)), hn::Mul(hn::Mul(hn::Set(d, f.one_minus_beta2), g), g));
  const auto root = hn::Div(hn::Sqrt(*v), hn::Set(d, f.root_correction));
  const auto denominator = hn::Add(root, hn::Set(d, f.eps));
  const auto decayed = hn::Mul(*param, hn::Set(d, f.decay));
  *param = hn::Add(decayed, hn::Div(hn::Mul(hn::Set(d, f.negative_step_size), *m), denominator));
}

void UpdateSpan(const AdamWFactors& f, const float* grad, int64_t n, float* param, float* m, float* v) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    auto vp = hn::LoadU(d, param + i), vm = hn::LoadU(d, m + i), vv = hn::LoadU(d, v + i);
    Update(d, f, hn::LoadU(d, grad + i), &vp, &vm, &vv);
    hn::StoreU(vp, d, param + i);
    hn::StoreU(vm, d, m + i);
    hn::StoreU(vv, d, v + i);
  }
  if (i < n) {
    const int64_t part = n - i;
    auto vp = LoadPart(d, param + i, part), vm = LoadPart(d, m + i, part), vv = LoadPart(d, v + i, part);
    Update(d, f, LoadPart(d, grad + i, part), &vp, &vm, &vv);
    StorePart(vp, d, param + i, part);
    StorePart(vm, d, m + i, part);
    StorePart(vv, d, v + i, part);
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

void AdamWUpdate(ConstVector grad, float grad_scale, const AdamWOptions& options, Vector param, Vector m, Vector v) {
  CHECK(grad.size == param.size && m.size == param.size && v.size == param.size);
  CHECK_GE(options.step, 1);
  const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(options.step));
  const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(options.step));
  const AdamWFactors factors = {
      .grad_scale = grad_scale,
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .one_minus_beta1 = static_cast<float>(1 - options.beta1),
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta2 = static_cast<float>(1 - options.beta2),
      .root_correction = static_cast<float>(std::sqrt(correction2)),
      .eps = static_cast<float>(options.eps),
      .negative_step_size = static_cast<float>(-options.learning_rate / correction1),
  };
  ParallelRanges(param.size, kElementGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(UpdateSpan)
    (factors, grad.data + begin, end - begin, param.data + begin, m.data + begin, v.data + begin);
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
