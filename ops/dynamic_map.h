// The 8-bit dynamic maps of bitsandbytes, signed and unsigned: 256 increasing values whose spacing follows their decade
// down to 5.5e-7 and 3.3e-7, and the nearest code of a value in constant time.
// Source: Dettmers et al. 2022, arXiv:2110.02861; bitsandbytes 0.50, create_dynamic_map and csrc/cpu_ops.cpp.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

namespace thimble {

// -0.99296874 .. 1, zero at 127.
const float* SignedDynamicMap();
// 0 .. 1.
const float* UnsignedDynamicMap();

// Nearest codes by table: a value's sign, exponent and seven bits of mantissa choose a range that at most one midpoint
// between neighbours cuts.
struct DynamicEncoder {
  static constexpr int32_t kLowest = (127 - 23) << 7;  // smaller magnitudes than 2^-23 share a range
  static constexpr int32_t kHighest = 127 << 7;        // 1 and what lies above it
  static constexpr int32_t kRanges = kHighest - kLowest + 1;

  const float* map;
  float midpoints[256];             // above code i; the last is infinite
  int32_t first_code[2 * kRanges];  // of the least value of a range; negative values in the second half

  static int32_t RangeOf(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const int32_t magnitude = static_cast<int32_t>(bits << 1 >> 17);
    return std::clamp(magnitude, kLowest, kHighest) - kLowest + (bits >> 31 != 0 ? kRanges : 0);
  }
  // The code nearest to a value in [-1, 1], the lower one of two equally near.
  uint8_t Code(float value) const {
    const int32_t code = first_code[RangeOf(value)];
    return static_cast<uint8_t>(code + (value > midpoints[code] ? 1 : 0));
  }
};
const DynamicEncoder& SignedDynamicEncoder();
const DynamicEncoder& UnsignedDynamicEncoder();

// bitsandbytes on a CPU rounds a value to one of 65,536 steps on [-1, 1] before it looks for the nearest code: 0
// becomes 1.5e-5. Values outside are clamped; NaN becomes -1.
inline float SnapToGrid(float value) {
  if (!(value > -1.0f)) value = -1.0f;
  const int step = static_cast<int>((std::min(value, 1.0f) + 1.0f) * 0.5f * 65535.0f + 0.5f);
  return -1.0f + 2.0f * static_cast<float>(step) / 65535.0f;
}

}  // namespace thimble
