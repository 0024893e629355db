#include "ops/round_tokens.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

// Nearest integer, ties to even, of |x| < 2^22; beyond, some integer beyond.
inline float Nearest(float x) {
  constexpr float kMagic = 0x1.8p23f;
  return std::fabs(x) < 0x1p22f ? (x + kMagic) - kMagic : x;
}

void RoundInt8(const float* x, int64_t cols, float lo, float hi, float* y) {
  const float scale = std::max((hi - lo) / 255.0f, std::numeric_limits<float>::min());
  const float zero = std::clamp(-128.0f - Nearest(lo / scale), -128.0f, 127.0f);
  const float inverse = 1.0f / scale;
  for (int64_t c = 0; c < cols; ++c) {
    const float code = std::clamp(Nearest(x[c] * inverse) + zero, -128.0f, 127.0f);
    y[c] = (code - zero) * scale;
  }
}

// |x| <= 448 up to rounding; larger ones become the largest value.
inline float NearestE4M3(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  // The distance of neighbours: 2^(exponent - 3), of subnormals 2^-9.
  const uint32_t exponent = std::max<uint32_t>(bits >> 23 & 255, 127 - 6);
  const uint32_t quantum_bits = (exponent - 3) << 23, inverse_bits = (254 - (exponent - 3)) << 23;
  float quantum, inverse;
  std::memcpy(&quantum, &quantum_bits, sizeof(quantum));
  std::memcpy(&inverse, &inverse_bits, sizeof(inverse));
  return std::clamp(Nearest(x * inverse) * quantum, -448.0f, 448.0f);
}

void RoundE4M3(const float* x, int64_t cols, float largest, float* y) {
  const float scale = largest / 448.0f;
  for (int64_t c = 0; c < cols; ++c) y[c] = scale > 0 ? NearestE4M3(x[c] / scale) * scale : 0.0f;
}

}  // namespace

void RoundTokens(ConstMatrix x, ActivationGrid grid, Matrix y) {
  CHECK(x.rows == y.rows && x.cols == y.cols && grid != ActivationGrid::kNone);
  ParallelFor(x.rows, [&](int64_t t, int) {
    const float* from = x.row(t);
    float lo = 0, hi = 0;
    bool finite = true;
    for (int64_t c = 0; c < x.cols; ++c) {
      lo = std::min(lo, from[c]);
      hi = std::max(hi, from[c]);
      finite = finite && std::isfinite(from[c]);
    }
    float* to = y.row(t);
    if (!finite) {
      std::fill_n(to, x.cols, std::numeric_limits<float>::quiet_NaN());
    } else if (grid == ActivationGrid::kInt8) {
      RoundInt8(from, x.cols, lo, hi, to);
    } else {
      RoundE4M3(from, x.cols, std::max(-lo, hi), to);
    }
  });
}

}  // namespace thimble
