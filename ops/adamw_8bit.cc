#include "ops/adamw_8bit.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/adamw_factors.h"
#include "ops/check.h"
#include "ops/dynamic_map.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/adamw_8bit.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep

// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/adamw-inl.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

constexpr int64_t kBlock = kMomentBlockSize;

void DecodeBlock(const float* map, const uint8_t* codes, float absmax, float* out) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<uint8_t, F32> d8;
  const int64_t lanes = hn::Lanes(d);
  const auto scale = hn::Set(d, absmax);
  for (int64_t i = 0; i < kBlock; i += lanes) {
    const auto code = hn::PromoteTo(di, hn::LoadU(d8, codes + i));
    hn::Store(hn::Mul(hn::GatherIndex(d, map, code), scale), d, out + i);
  }
}

// DynamicEncoder::Code of a vector.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> Codes(D d, const DynamicEncoder& encoder, hn::Vec<D> value) {
  const hn::RebindToSigned<D> di;
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, value);
  const auto magnitude = hn::BitCast(di, hn::ShiftRight<17>(hn::ShiftLeft<1>(bits)));
  const auto lowest = hn::Set(di, DynamicEncoder::kLowest);
  const auto second_half = hn::And(hn::BroadcastSignBit(hn::BitCast(di, value)), hn::Set(di, DynamicEncoder::kRanges));
  // Bounded above as well: an infinite or NaN moment must not read outside the table.
  const auto bounded = hn::Min(hn::Max(magnitude, lowest), hn::Set(di, DynamicEncoder::kHighest));
  const auto range = hn::Add(hn::Sub(bounded, lowest), second_half);
  const auto code = hn::GatherIndex(di, encoder.first_code, range);
  const auto above = hn::Gt(value, hn::GatherIndex(d, encoder.midpoints, code));
  // A comparison that holds is -1 in every bit.
  return hn::Sub(code, hn::BitCast(di, hn::VecFromMask(d, above)));
}

// SnapToGrid of a vector; absmax > 0 and finite values, so that no NaN comes in.
template <class D>
HWY_INLINE hn::Vec<D> Snap(D d, hn::Vec<D> value) {
  const hn::RebindToSigned<D> di;
  const auto one = hn::Set(d, 1.0f);
  const auto clamped = hn::Min(hn::Max(value, hn::Set(d, -1.0f)), one);
  const auto scaled = hn::Mul(hn::Mul(hn::Add(clamped, one), hn::Set(d, 0.5f)), hn::Set(d, 65535.0f));
  const auto step = hn::ConvertTo(d, hn::ConvertTo(di, hn::Add(scaled, hn::Set(d, 0.5f))));
  return hn::Sub(hn::Div(hn::Mul(step, hn::Set(d, 2.0f)), hn::Set(d, 65535.0f)), one);
}

// Encodes a padded block and returns its absmax. `keep_positive`: a value above zero does not become code 0.
float EncodeBlock(const DynamicEncoder& encoder, MomentRounding rounding, bool keep_positive, const float* values,
                  uint8_t* codes) {
  const F32 d;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<uint8_t, F32> d8;
  const int64_t lanes = hn::Lanes(d);
  auto largest = hn::Zero(d);
  for (int64_t i = 0; i < kBlock; i += lanes) largest = hn::Max(largest, hn::Abs(hn::Load(d, values + i)));
  const float absmax = hn::GetLane(hn::MaxOfLanes(d, largest));
  if (absmax == 0) {
    std::memset(codes, 0, kBlock);
    return 0;
  }
  const auto divisor = hn::Set(d, absmax);
  const auto scale = hn::Set(d, 1.0f / absmax);
  const auto least = hn::Set(di, keep_positive ? 1 : 0);
  for (int64_t i = 0; i < kBlock; i += lanes) {
    const auto value = hn::Load(d, values + i);
    auto code = hn::Zero(di);
    if (rounding == MomentRounding::kGrid) {
      code = Codes(d, encoder, Snap(d, hn::Mul(value, scale)));
    } else {
      code = Codes(d, encoder, hn::Div(value, divisor));
      const auto positive = hn::BitCast(di, hn::VecFromMask(d, hn::Gt(value, hn::Zero(d))));
      code = hn::Max(code, hn::And(positive, least));
    }
    hn::StoreU(hn::DemoteTo(d8, code), d8, codes + i);
  }
  return absmax;
}

// A whole block in float buffers of kBlock elements.
void UpdateValues(const AdamWFactors& f, const float* grad, float* param, float* m, float* v) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  for (int64_t i = 0; i < kBlock; i += lanes) {
    const auto g = hn::Mul(hn::LoadU(d, grad + i), hn::Set(d, f.grad_scale));
    const auto vm =
        hn::Add(hn::Mul(hn::Load(d, m + i), hn::Set(d, f.beta1)), hn::Mul(g, hn::Set(d, f.one_minus_beta1)));
    const auto vv = AdamWSecondMoment(d, f, g, hn::Load(d, v + i));
    hn::Store(vm, d, m + i);
    hn::Store(vv, d, v + i);
    hn::StoreU(AdamWParameter(d, f, hn::LoadU(d, param + i), vm, vv), d, param + i);
  }
}

// One block of kBlock elements with its two absmax.
void UpdateBlock(const AdamWFactors& f, MomentRounding rounding, const float* grad, float* param, uint8_t* m_codes,
                 uint8_t* v_codes, float* m_absmax, float* v_absmax) {
  alignas(64) float m[kBlock];
  alignas(64) float v[kBlock];
  const DynamicEncoder& m_encoder = SignedDynamicEncoder();
  const DynamicEncoder& v_encoder = UnsignedDynamicEncoder();
  DecodeBlock(m_encoder.map, m_codes, *m_absmax, m);
  DecodeBlock(v_encoder.map, v_codes, *v_absmax, v);
  UpdateValues(f, grad, param, m, v);
  *m_absmax = EncodeBlock(m_encoder, rounding, /*keep_positive=*/false, m, m_codes);
  *v_absmax = EncodeBlock(v_encoder, rounding, /*keep_positive=*/true, v, v_codes);
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(UpdateBlock);

// The last block, when it is short, in a padded copy whose missing moments decode to exact zeros.
void UpdateShortBlock(const AdamWFactors& f, MomentRounding rounding, const float* grad, int64_t n, float* param,
                      uint8_t* m_codes, uint8_t* v_codes, float* m_absmax, float* v_absmax) {
  constexpr uint8_t kZeroOfSignedMap = 127;
  float g[kMomentBlockSize] = {};
  float p[kMomentBlockSize] = {};
  uint8_t mc[kMomentBlockSize];
  uint8_t vc[kMomentBlockSize] = {};
  std::fill_n(mc, kMomentBlockSize, kZeroOfSignedMap);
  std::copy_n(grad, n, g);
  std::copy_n(param, n, p);
  std::copy_n(m_codes, n, mc);
  std::copy_n(v_codes, n, vc);
  HWY_DYNAMIC_DISPATCH(UpdateBlock)(f, rounding, g, p, mc, vc, m_absmax, v_absmax);
  std::copy_n(p, n, param);
  std::copy_n(mc, n, m_codes);
  std::copy_n(vc, n, v_codes);
}

}  // namespace

void AdamW8BitUpdate(ConstVector grad, float grad_scale, const AdamWOptions& options, MomentRounding rounding,
                     Vector param, const Moments8Bit& moments) {
  CHECK_EQ(grad.size, param.size);
  const int64_t blocks = MomentBlocks(param.size);
  CHECK(moments.m_absmax.size == blocks && moments.v_absmax.size == blocks);
  const AdamWFactors factors = MakeAdamWFactors(options, grad_scale);
  ParallelRanges(blocks, kElementGrain / kMomentBlockSize, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = b * kMomentBlockSize;
      const float* g = grad.data + first;
      float* p = param.data + first;
      uint8_t* m_codes = moments.m_codes + first;
      uint8_t* v_codes = moments.v_codes + first;
      float* m_absmax = &moments.m_absmax[b];
      float* v_absmax = &moments.v_absmax[b];
      const int64_t n = std::min(kMomentBlockSize, param.size - first);
      if (n == kMomentBlockSize) {
        HWY_DYNAMIC_DISPATCH(UpdateBlock)(factors, rounding, g, p, m_codes, v_codes, m_absmax, v_absmax);
      } else {
        UpdateShortBlock(factors, rounding, g, n, p, m_codes, v_codes, m_absmax, v_absmax);
      }
    }
  });
}

}  // namespace thimble
#endif  // HWY_ONCE
