// Values that benchmarks multiply or quantise: the same in every run.
#pragma once

#include <cstdint>
#include <vector>

namespace thimble {

// `count` pseudo-random values in +-1/32.
inline std::vector<float> Values(int64_t count) {
  std::vector<float> values(count);
  uint32_t state = 1;
  for (float& value : values) {
    state = state * 1664525 + 1013904223;
    value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-36f;
  }
  return values;
}

}  // namespace thimble
