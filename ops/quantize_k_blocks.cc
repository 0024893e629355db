// A K-quant's block: sub-blocks are fitted one by one, then their scales are rounded to the block's. Every sum and
// product is in ggml's order, without FMA.
#include "ops/quantize_k_blocks.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "ops/decode_blocks.h"
#include "ops/format.h"

namespace thimble {
namespace {

constexpr float kLeastPeak = 1e-15f;  // what is smaller counts as zero

// Half to even, by the addition that ggml rounds with; beyond 2^22 in magnitude its low bits.
int Nearest(float value) {
  const float shifted = value + 12582912.f;
  int32_t bits;
  std::memcpy(&bits, &shifted, sizeof(bits));
  return (bits & 0x007fffff) - 0x00400000;
}

int Clamped(float value, int low, int high) { return std::max(low, std::min(high, Nearest(value))); }

void StoreHalf(float value, uint8_t* at) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(at, &bits, sizeof(bits));
}

float RoundedToHalf(float value) { return F16ToFloat(FloatToF16(value)); }

// Weighted sums over a sub-block of 32 with its codes.
struct Fit {
  float scale = 0;
  float min = 0;  // the value of code 0
  float error = 0;
  uint8_t codes[32];
};

float WeightedError(const Fit& fit, const float* x, const float* weights) {
  float error = 0;
  for (int i = 0; i < 32; ++i) {
    const float difference = fit.scale * static_cast<float>(fit.codes[i]) + fit.min - x[i];
    error += weights[i] * (difference * difference);
  }
  return error;
}

// Codes of x with scale 1 / inverse above `min`, then the least squares scale and minimum for them. False: none.
bool Refit(const float* x, const float* weights, int most, float inverse, float min, float sum_w, float sum_x,
           Fit* fit) {
  float sum_l = 0, sum_l2 = 0, sum_xl = 0;
  for (int i = 0; i < 32; ++i) {
    fit->codes[i] = static_cast<uint8_t>(Clamped(inverse * (x[i] - min), 0, most));
    const float l = static_cast<float>(fit->codes[i]);
    sum_l += weights[i] * l;
    sum_l2 += weights[i] * l * l;
    sum_xl += weights[i] * l * x[i];
  }
  const float determinant = sum_w * sum_l2 - sum_l * sum_l;
  if (!(determinant > 0)) return false;
  fit->scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
  fit->min = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
  if (fit->min > 0) {
    fit->min = 0;
    fit->scale = sum_xl / sum_l2;
  }
  fit->error = WeightedError(*fit, x, weights);
  return true;
}

// Steps of the search: the inverse scale is (begin + step k + most) / range for k = 0 .. last.
struct Search {
  int most;
  float begin;
  float step;
  int last;
};

// Scale, minimum (<= 0) and codes of 32 values.
Fit FitSubBlock(const float* x, const Search& search) {
  float weights[32];
  float squares = 0;
  for (int i = 0; i < 32; ++i) squares += x[i] * x[i];
  const float root = std::sqrt(squares / 32);
  for (int i = 0; i < 32; ++i) weights[i] = root + std::fabs(x[i]);

  float low = x[0], high = x[0], sum_w = weights[0], sum_x = sum_w * x[0];
  for (int i = 1; i < 32; ++i) {
    low = x[i] < low ? x[i] : low;
    high = x[i] > high ? x[i] : high;
    sum_w += weights[i];
    sum_x += weights[i] * x[i];
  }
  Fit best;
  best.min = low > 0 ? 0 : low;
  if (high == best.min) {
    std::memset(best.codes, 0, sizeof(best.codes));
    return best;
  }
  const float most = static_cast<float>(search.most);
  const float inverse = most / (high - best.min);
  best.scale = 1 / inverse;
  for (int i = 0; i < 32; ++i) {
    best.codes[i] = static_cast<uint8_t>(Clamped(inverse * (x[i] - best.min), 0, search.most));
  }
  best.error = WeightedError(best, x, weights);
  for (int k = 0; k <= search.last; ++k) {
    const float tried = (search.begin + search.step * static_cast<float>(k) + most) / (high - best.min);
    Fit fit;
    if (Refit(x, weights, search.most, tried, best.min, sum_w, sum_x, &fit) && fit.error < best.error) best = fit;
  }
  return best;
}

// Q4_K and Q5_K up to the packing of codes: 16 bytes of scales and 256 codes.
void EncodeScalesAndMins(const float* x, const Search& search, uint8_t* out, uint8_t* codes) {
  float scales[8], mins[8];
  float most_scale = 0, most_min = 0;
  for (int j = 0; j < 8; ++j) {
    const Fit fit = FitSubBlock(x + 32 * j, search);
    std::memcpy(codes + 32 * j, fit.codes, 32);
    scales[j] = fit.scale;
    mins[j] = -fit.min;
    most_scale = scales[j] > most_scale ? scales[j] : most_scale;
    most_min = mins[j] > most_min ? mins[j] : most_min;
  }
  const float inverse_scale = most_scale > 0 ? 63.f / most_scale : 0.f;
  const float inverse_min = most_min > 0 ? 63.f / most_min : 0.f;
  uint8_t* packed = out + 4;
  std::memset(packed, 0, 12);
  for (int j = 0; j < 8; ++j) {
    const int s = std::min(63, static_cast<int>(static_cast<uint8_t>(Nearest(inverse_scale * scales[j]))));
    const int m = std::min(63, static_cast<int>(static_cast<uint8_t>(Nearest(inverse_min * mins[j]))));
    if (j < 4) {
      packed[j] = static_cast<uint8_t>(s);
      packed[j + 4] = static_cast<uint8_t>(m);
    } else {
      packed[j + 4] = static_cast<uint8_t>((s & 15) | (m & 15) << 4);
      packed[j - 4] = static_cast<uint8_t>(packed[j - 4] | s >> 4 << 6);
      packed[j] = static_cast<uint8_t>(packed[j] | m >> 4 << 6);
    }
  }
  StoreHalf(most_scale / 63.f, out);
  StoreHalf(most_min / 63.f, out + 2);
  const float d = RoundedToHalf(most_scale / 63.f), dmin = RoundedToHalf(most_min / 63.f);
  for (int j = 0; j < 8; ++j) {
    uint8_t s, m;
    UnpackScaleAndMin(j, packed, &s, &m);
    const float scale = d * static_cast<float>(s);
    if (scale == 0) continue;
    const float min = dmin * static_cast<float>(m);
    for (int i = 32 * j; i < 32 * j + 32; ++i) {
      codes[i] = static_cast<uint8_t>(Clamped((x[i] + min) / scale, 0, search.most));
    }
  }
}

// Scale and codes (0 .. 63 for -32 .. 31) of 16 values.
float FitSymmetric(const float* x, uint8_t* codes) {
  float peak = 0, magnitude = 0;
  for (int i = 0; i < 16; ++i) {
    if (std::fabs(x[i]) > magnitude) {
      magnitude = std::fabs(x[i]);
      peak = x[i];
    }
  }
  if (magnitude < kLeastPeak) {
    std::memset(codes, 0, 16);
    return 0;
  }
  float scale = 0, best = 0;
  const auto attempt = [&](float inverse, bool first) {
    float sum_lx = 0, sum_l2 = 0;
    for (int i = 0; i < 16; ++i) {
      const float l = static_cast<float>(Clamped(inverse * x[i], -32, 31));
      const float w = x[i] * x[i];
      sum_lx += w * x[i] * l;
      sum_l2 += w * l * l;
    }
    if (first) {
      scale = sum_l2 != 0 ? sum_lx / sum_l2 : 0.f;
    } else {
      if (!(sum_l2 > 0 && sum_lx * sum_lx > best * sum_l2)) return;
      scale = sum_lx / sum_l2;
    }
    for (int i = 0; i < 16; ++i) codes[i] = static_cast<uint8_t>(32 + Clamped(inverse * x[i], -32, 31));
    best = scale * sum_lx;
  };
  attempt(-32 / peak, true);
  for (int k = -9; k <= 9; ++k) {
    if (k != 0) attempt(-(32 + 0.1f * static_cast<float>(k)) / peak, false);
  }
  return scale;
}

}  // namespace

void EncodeQ4K(const float* x, uint8_t* out) {
  uint8_t codes[256];
  EncodeScalesAndMins(x, {15, -1.f, 0.1f, 20}, out, codes);
  for (int c = 0; c < 4; ++c) {
    for (int l = 0; l < 32; ++l) {
      out[16 + 32 * c + l] = static_cast<uint8_t>(codes[64 * c + l] | codes[64 * c + 32 + l] << 4);
    }
  }
}

void EncodeQ5K(const float* x, uint8_t* out) {
  uint8_t codes[256];
  EncodeScalesAndMins(x, {31, -0.5f, 0.1f, 15}, out, codes);
  for (int l = 0; l < 32; ++l) {
    int fifth = 0;
    for (int j = 0; j < 8; ++j) fifth |= (codes[32 * j + l] >> 4) << j;
    out[16 + l] = static_cast<uint8_t>(fifth);
  }
  for (int c = 0; c < 4; ++c) {
    for (int l = 0; l < 32; ++l) {
      out[48 + 32 * c + l] = static_cast<uint8_t>((codes[64 * c + l] & 15) | (codes[64 * c + 32 + l] & 15) << 4);
    }
  }
}

void EncodeQ6K(const float* x, uint8_t* out) {
  uint8_t codes[256];
  float scales[16];
  float peak = 0, magnitude = 0;
  for (int j = 0; j < 16; ++j) {
    scales[j] = FitSymmetric(x + 16 * j, codes + 16 * j);
    if (std::fabs(scales[j]) > magnitude) {
      magnitude = std::fabs(scales[j]);
      peak = scales[j];
    }
  }
  if (magnitude < kLeastPeak) {
    std::memset(out, 0, 210);
    return;
  }
  const float inverse = -128.f / peak;
  StoreHalf(1 / inverse, out + 208);
  const float d = RoundedToHalf(1 / inverse);
  for (int j = 0; j < 16; ++j) {
    const int8_t s = static_cast<int8_t>(std::min(127, Nearest(inverse * scales[j])));
    out[192 + j] = static_cast<uint8_t>(s);
    const float scale = d * static_cast<float>(s);
    if (scale == 0) continue;
    for (int i = 16 * j; i < 16 * j + 16; ++i) codes[i] = static_cast<uint8_t>(32 + Clamped(x[i] / scale, -32, 31));
  }
  for (int half = 0; half < 2; ++half) {
    const uint8_t* q = codes + 128 * half;
    for (int l = 0; l < 32; ++l) {
      out[64 * half + l] = static_cast<uint8_t>((q[l] & 15) | (q[l + 64] & 15) << 4);
      out[64 * half + 32 + l] = static_cast<uint8_t>((q[l + 32] & 15) | (q[l + 96] & 15) << 4);
      out[128 + 32 * half + l] =
          static_cast<uint8_t>(q[l] >> 4 | q[l + 32] >> 4 << 2 | q[l + 64] >> 4 << 4 | q[l + 96] >> 4 << 6);
    }
  }
}

}  // namespace thimble
