// Vector arithmetic that kernels share: exp, sigmoid, tanh, partial loads and sums in a fixed order. Included inside a
// Highway foreach_target source, after hwy/highway.h's own include. No function here fuses a product and a sum, so
// every CPU level gives the same bits.
#if defined(THIMBLE_OPS_VECTOR_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_VECTOR_MATH_INL_H_
#undef THIMBLE_OPS_VECTOR_MATH_INL_H_
#else
#define THIMBLE_OPS_VECTOR_MATH_INL_H_
#endif

#include <cstdint>
#include <cstring>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The widest vector of at most 16 floats.
using F32 = hn::CappedTag<float, 16>;

// The first n (below Lanes(d)) values of p, then zeros.
template <class D>
HWY_INLINE hn::Vec<D> LoadPart(D d, const hn::TFromD<D>* p, int64_t n) {
  alignas(64) hn::TFromD<D> values[hn::MaxLanes(D())] = {};
  std::memcpy(values, p, n * sizeof(*p));
  return hn::Load(d, values);
}
template <class D>
HWY_INLINE void StorePart(hn::Vec<D> v, D d, hn::TFromD<D>* p, int64_t n) {
  alignas(64) hn::TFromD<D> values[hn::MaxLanes(D())];
  hn::Store(v, d, values);
  std::memcpy(p, values, n * sizeof(*p));
}

// 2^n for integers n in [-126, 127], given as floats.
template <class D>
HWY_INLINE hn::Vec<D> PowerOfTwo(D d, hn::Vec<D> n) {
  const hn::RebindToSigned<D> di;
  const auto exponent = hn::Add(hn::ConvertTo(di, n), hn::Set(di, 127));
  return hn::BitCast(d, hn::ShiftLeft<23>(exponent));
}

// e^x within 1.1 ulp; 0 below -104, infinity above 88.73, NaN for NaN. Subnormal results are
// exact to half a subnormal step more. Cody-Waite reduction; polynomial of Cephes' expf.
template <class D>
HWY_INLINE hn::Vec<D> Exp(D d, hn::Vec<D> x) {
  // Clamped so that n stays in [-150, 128]; NaN is restored at the end.
  const auto clamped = hn::Min(hn::Max(x, hn::Set(d, -104.0f)), hn::Set(d, 89.0f));
  // Adding 1.5 * 2^23 rounds to the nearest integer.
  const auto magic = hn::Set(d, 12582912.0f);
  const auto n = hn::Sub(hn::Add(hn::Mul(clamped, hn::Set(d, 1.44269504088896341f)), magic), magic);
  // ln 2 in two parts; n times the first part is exact.
  auto r = hn::Sub(clamped, hn::Mul(n, hn::Set(d, 0.693359375f)));
  r = hn::Sub(r, hn::Mul(n, hn::Set(d, -2.12194440e-4f)));
  auto p = hn::Set(d, 1.9875691500e-4f);
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.3981999507e-3f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 8.3334519073e-3f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 4.1665795894e-2f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 1.6666665459e-1f));
  p = hn::Add(hn::Mul(p, r), hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::Add(hn::Mul(p, hn::Mul(r, r)), r), hn::Set(d, 1.0f));
  // In two factors: 2^n alone would leave the range of floats at both ends.
  const auto half = hn::Sub(hn::Add(hn::Mul(n, hn::Set(d, 0.5f)), magic), magic);
  const auto y = hn::Mul(hn::Mul(p, PowerOfTwo(d, half)), PowerOfTwo(d, hn::Sub(n, half)));
  return hn::IfThenElse(hn::Eq(x, x), y, x);
}

// 1 / (1 + e^-x) from e^-|x|: no overflow, relative accuracy on both sides. NaN for NaN.
template <class D>
HWY_INLINE hn::Vec<D> Sigmoid(D d, hn::Vec<D> x) {
  const auto one = hn::Set(d, 1.0f);
  const auto e = Exp(d, hn::Neg(hn::Abs(x)));
  return hn::Div(hn::IfThenElse(hn::Lt(x, hn::Zero(d)), e, one), hn::Add(one, e));
}

// tanh x within 2 ulp: polynomial of Cephes' tanhf below 0.625, else 1 - 2e / (1 + e) with e = exp(-2 |x|).
template <class D>
HWY_INLINE hn::Vec<D> Tanh(D d, hn::Vec<D> x) {
  const auto magnitude = hn::Abs(x);
  const auto square = hn::Mul(x, x);
  auto p = hn::Set(d, -5.70498872745e-3f);
  p = hn::Add(hn::Mul(p, square), hn::Set(d, 2.06390887954e-2f));
  p = hn::Add(hn::Mul(p, square), hn::Set(d, -5.37397155531e-2f));
  p = hn::Add(hn::Mul(p, square), hn::Set(d, 1.33314422036e-1f));
  p = hn::Add(hn::Mul(p, square), hn::Set(d, -3.33332819422e-1f));
  const auto small = hn::Add(hn::Mul(hn::Mul(p, square), x), x);
  const auto e = Exp(d, hn::Mul(magnitude, hn::Set(d, -2.0f)));
  const auto one = hn::Set(d, 1.0f);
  const auto large = hn::Sub(one, hn::Div(hn::Add(e, e), hn::Add(one, e)));
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, 0.625f)), small, hn::CopySign(large, x));
}

// sum of term over [0, n), n any size. Term gives `Vec<D> operator()(D d, int64_t i)`, the terms of i, i+1, ... for one
// vector, and `float At(int64_t i)` with the same arithmetic. Sixteen running float sums (index modulo 16) over blocks
// of 1024, the blocks added in double: the same bits for every vector width.
template <class D, class Term>
HWY_INLINE double SumInBlocks(D d, int64_t n, const Term& term) {
  constexpr int64_t kLanes = hn::MaxLanes(D());
  static_assert(kLanes == 1 || kLanes == 4 || kLanes == 8 || kLanes == 16);
  constexpr int64_t kBlock = 1024;
  double total = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = begin + kBlock < n ? begin + kBlock : n;
    alignas(64) float lanes[16] = {};
    int64_t i = begin;
    if constexpr (kLanes > 1) {
      auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
      for (; i + 16 <= end; i += 16) {
        s0 = hn::Add(s0, term(d, i));
        if constexpr (kLanes <= 8) s1 = hn::Add(s1, term(d, i + kLanes));
        if constexpr (kLanes == 4) {
          s2 = hn::Add(s2, term(d, i + 8));
          s3 = hn::Add(s3, term(d, i + 12));
        }
      }
      hn::Store(s0, d, lanes);
      if constexpr (kLanes <= 8) hn::Store(s1, d, lanes + kLanes);
      if constexpr (kLanes == 4) {
        hn::Store(s2, d, lanes + 8);
        hn::Store(s3, d, lanes + 12);
      }
    }
    for (; i < end; ++i) lanes[(i - begin) % 16] += term.At(i);
    for (int64_t k = 8; k > 0; k /= 2) {
      for (int64_t j = 0; j < k; ++j) lanes[j] += lanes[j + k];
    }
    total += lanes[0];
  }
  return total;
}

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_VECTOR_MATH_INL_H_
