#include "ops/adamw.h"

#include <cstdint>

#include "ops/adamw_factors.h"
#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/adamw-inl.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

template <class D>
HWY_INLINE void Update(D d, const AdamWFactors& f, hn::Vec<D> grad, hn::Vec<D>* param, hn::Vec<D>* m, hn::Vec<D>* v) {
  const auto g = hn::Mul(grad, hn::Set(d, f.grad_scale));
  *m = hn::Add(*m, hn::Mul(hn::Set(d, f.one_minus_beta1), hn::Sub(g, *m)));
  *v = AdamWSecondMoment(d, f, g, *v);
  *param = AdamWParameter(d, f, *param, *m, *v);
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
  const AdamWFactors factors = MakeAdamWFactors(options, grad_scale);
  ParallelRanges(param.size, kElementGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(UpdateSpan)
    (factors, grad.data + begin, end - begin, param.data + begin, m.data + begin, v.data + begin);
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
