// The values of tests/golden/quantize_blocks/make.py, by the same integer formulas.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "ops/format.h"

namespace thimble {

inline float FloatFromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline uint32_t GoldenMix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352d;
  x ^= x >> 15;
  x *= 0x846ca68b;
  return x ^ (x >> 16);
}

// About normal.
inline float GoldenBell(uint32_t h) {
  const int32_t total = static_cast<int32_t>((h & 255) + (h >> 8 & 255) + (h >> 16 & 255) + (h >> 24));
  return static_cast<float>(total - 510) * 0x1p-13f;
}

inline float GoldenValue(int kind, uint32_t i) {
  const uint32_t h = GoldenMix(i + static_cast<uint32_t>(kind) * 0x9e3779b1u);
  switch (kind) {
    case 0:
      return GoldenBell(h);
    case 1:
      return FloatFromBits((h & 0x807fffff) | (32 + GoldenMix(i >> 5) % 96 + (h >> 24) % 8) << 23);
    case 2:
      return GoldenMix(i >> 4) % 4 == 0 ? FloatFromBits(h & 0x80000000) : GoldenBell(h);
    case 3:
      return static_cast<float>(static_cast<int>(h % 61) - 30) *
             std::ldexp(1.0f, static_cast<int>(GoldenMix(i >> 5) % 20) - 15);
    case 4:
      return FloatFromBits((h & 0x80000000) | (h & 0xffffff) >> (GoldenMix(i >> 6) % 24));
    case 5: {
      const float value = GoldenBell(h);
      uint32_t bits;
      std::memcpy(&bits, &value, sizeof(bits));
      return BF16ToFloat(static_cast<uint16_t>(bits >> 16));
    }
    default:
      return static_cast<float>(static_cast<int32_t>(h)) * 0x1p-40f;
  }
}

inline std::vector<float> GoldenValues(int kind, int64_t count) {
  std::vector<float> values(count);
  for (int64_t i = 0; i < count; ++i) values[i] = GoldenValue(kind, static_cast<uint32_t>(i));
  return values;
}

}  // namespace thimble
