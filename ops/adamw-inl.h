// AdamW's change of the parameter, shared by the kernels that keep its moments in different formats. Included inside a
// Highway foreach_target source.
#if defined(THIMBLE_OPS_ADAMW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_ADAMW_INL_H_
#undef THIMBLE_OPS_ADAMW_INL_H_
#else
#define THIMBLE_OPS_ADAMW_INL_H_
#endif

#include "hwy/highway.h"
#include "ops/adamw_factors.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {

// The parameter after a step with the new moments m and v.
template <class D>
HWY_INLINE hn::Vec<D> AdamWParameter(D d, const AdamWFactors& f, hn::Vec<D> param, hn::Vec<D> m, hn::Vec<D> v) {
  const auto root = hn::Div(hn::Sqrt(v), hn::Set(d, f.root_correction));
  const auto denominator = hn::Add(root, hn::Set(d, f.eps));
  const auto decayed = hn::Mul(param, hn::Set(d, f.decay));
  return hn::Add(decayed, hn::Div(hn::Mul(hn::Set(d, f.negative_step_size), m), denominator));
}

// beta2 v + (1 - beta2) g^2
template <class D>
HWY_INLINE hn::Vec<D> AdamWSecondMoment(D d, const AdamWFactors& f, hn::Vec<D> g, hn::Vec<D> v) {
  return hn::Add(hn::Mul(v, hn::Set(d, f.beta2)), hn::Mul(hn::Mul(hn::Set(d, f.one_minus_beta2), g), g));
}

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_ADAMW_INL_H_
