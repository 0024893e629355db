#include "ops/rope.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/row_split.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/rope.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// One token: all heads with one row of cos and sin; sign -1 rotates back.
void RotateRow(const float* x, const float* cos, const float* sin, float sign, int64_t heads, int64_t head_dim,
               int64_t half, float* y) {
  const F32 d;
  const int64_t lanes = hn::Lanes(d);
  const auto vsign = hn::Set(d, sign);
  for (int64_t head = 0; head < heads; ++head, x += head_dim, y += head_dim) {
    int64_t i = 0;
    for (; i + lanes <= half; i += lanes) {
      const auto c = hn::LoadU(d, cos + i), s = hn::Mul(vsign, hn::LoadU(d, sin + i));
      const auto a = hn::LoadU(d, x + i), b = hn::LoadU(d, x + half + i);
      hn::StoreU(hn::Sub(hn::Mul(a, c), hn::Mul(b, s)), d, y + i);
      hn::StoreU(hn::Add(hn::Mul(b, c), hn::Mul(a, s)), d, y + half + i);
    }
    for (; i < half; ++i) {
      const float s = sign * sin[i], a = x[i], b = x[half + i];
      y[i] = a * cos[i] - b * s;
      y[half + i] = b * cos[i] + a * s;
    }
    if (y != x && head_dim > 2 * half) std::memcpy(y + 2 * half, x + 2 * half, (head_dim - 2 * half) * sizeof(float));
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(RotateRow);

constexpr double kPi = 3.14159265358979323846;

void Rotate(ConstMatrix x, ConstMatrix cos, ConstMatrix sin, float sign, int head_dim, Matrix y) {
  CHECK(x.rows == y.rows && x.cols == y.cols);
  CHECK(cos.rows == x.rows && sin.rows == x.rows && sin.cols == cos.cols);
  CHECK(head_dim > 0 && x.cols % head_dim == 0) << x.cols << " columns, head_dim " << head_dim;
  CHECK_LE(2 * cos.cols, head_dim);
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      HWY_DYNAMIC_DISPATCH(RotateRow)
      (x.row(t), cos.row(t), sin.row(t), sign, x.cols / head_dim, head_dim, cos.cols, y.row(t));
    }
  });
}

void ScaleLlama3(const RopeScaling& scaling, std::vector<float>* inv_freq) {
  const double original = scaling.original_max_position;
  const double low = scaling.low_freq_factor, high = scaling.high_freq_factor;
  for (float& inv : *inv_freq) {
    const double wavelength = 2 * kPi / inv;
    if (wavelength < original / high) continue;
    if (wavelength > original / low) {
      inv = static_cast<float>(inv / scaling.factor);
      continue;
    }
    const double smooth = (original / wavelength - low) / (high - low);
    inv = static_cast<float>((1 - smooth) * inv / scaling.factor + smooth * inv);
  }
}

// The dimension that turns n times within the original length.
double YarnDimension(double n, int dim, double theta, double original) {
  return dim * std::log(original / (2 * kPi * n)) / (2 * std::log(theta));
}

void ScaleYarn(int dim, double theta, const RopeScaling& scaling, std::vector<float>* inv_freq) {
  double low = YarnDimension(scaling.beta_fast, dim, theta, scaling.original_max_position);
  double high = YarnDimension(scaling.beta_slow, dim, theta, scaling.original_max_position);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq->size(); ++i) {
    const double ramp = std::clamp((i - low) / (high - low), 0.0, 1.0);
    const double inv = (*inv_freq)[i];
    (*inv_freq)[i] = static_cast<float>(inv / scaling.factor * ramp + inv * (1 - ramp));
  }
}

double YarnMagnitude(double factor, double mscale) { return factor <= 1 ? 1 : 0.1 * mscale * std::log(factor) + 1; }

float YarnAttentionFactor(const RopeScaling& scaling) {
  if (scaling.attention_factor != 0) return scaling.attention_factor;
  if (scaling.mscale != 0 && scaling.mscale_all_dim != 0) {
    return static_cast<float>(YarnMagnitude(scaling.factor, scaling.mscale) /
                              YarnMagnitude(scaling.factor, scaling.mscale_all_dim));
  }
  return static_cast<float>(YarnMagnitude(scaling.factor, 1));
}

}  // namespace

RopeFrequencies MakeRopeFrequencies(int head_dim, double theta, const RopeScaling& scaling, int64_t /*max_position*/) {
  CHECK(head_dim >= 0 && head_dim % 2 == 0) << head_dim;
  RopeFrequencies result;
  result.inv_freq.resize(head_dim / 2);
  for (int i = 0; i < head_dim / 2; ++i) {
    const float exponent = static_cast<float>(2 * i) / static_cast<float>(head_dim);
    result.inv_freq[i] = 1.0f / static_cast<float>(std::pow(theta, exponent));
  }
  switch (scaling.type) {
    case RopeScaling::Type::kNone:
      break;
    case RopeScaling::Type::kLinear:
      for (float& inv : result.inv_freq) inv /= scaling.factor;
      break;
    case RopeScaling::Type::kLlama3:
      CHECK_GT(scaling.original_max_position, 0);
      ScaleLlama3(scaling, &result.inv_freq);
      break;
    case RopeScaling::Type::kYarn:
      CHECK_GT(scaling.original_max_position, 0);
      ScaleYarn(head_dim, theta, scaling, &result.inv_freq);
      result.attention_factor = YarnAttentionFactor(scaling);
      break;
  }
  return result;
}

void RopeTable(ConstInts positions, ConstVector inv_freq, float attention_factor, Matrix cos, Matrix sin) {
  CHECK(cos.rows == positions.size && sin.rows == positions.size);
  CHECK(cos.cols == inv_freq.size && sin.cols == inv_freq.size);
  // A cosine and a sine cost about as much as 64 element-wise steps.
  ParallelRows(cos.rows, cos.cols * 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < inv_freq.size; ++i) {
        const float angle = static_cast<float>(positions[t]) * inv_freq[i];
        cos(t, i) = static_cast<float>(std::cos(static_cast<double>(angle))) * attention_factor;
        sin(t, i) = static_cast<float>(std::sin(static_cast<double>(angle))) * attention_factor;
      }
    }
  });
}

void RopeForward(ConstMatrix x, ConstMatrix cos, ConstMatrix sin, int head_dim, Matrix y) {
  Rotate(x, cos, sin, 1, head_dim, y);
}

void RopeBackward(ConstMatrix dy, ConstMatrix cos, ConstMatrix sin, int head_dim, Matrix dx) {
  Rotate(dy, cos, sin, -1, head_dim, dx);
}

}  // namespace thimble
#endif  // HWY_ONCE
