#include "ops/dynamic_map.h"

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "ops/check.h"

namespace thimble {
namespace {

// torch.linspace(0.1, 1, count) in f32, element i.
float Linspace(int count, int i) {
  const float step = (1.0f - 0.1f) / static_cast<float>(count - 1);
  if (i < count / 2) return std::fma(step, static_cast<float>(i), 0.1f);
  return std::fma(-step, static_cast<float>(count - 1 - i), 1.0f);
}

std::vector<float> MakeMap(bool has_sign) {
  constexpr double kPowers[7] = {1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1};
  std::vector<float> map = {0.0f, 1.0f};
  for (int exponent = 0; exponent < 7; ++exponent) {
    const int boundaries = (1 << (has_sign ? exponent : exponent + 1)) + 1;
    for (int i = 0; i + 1 < boundaries; ++i) {
      const float mean = (Linspace(boundaries, i) + Linspace(boundaries, i + 1)) / 2;
      const float value = static_cast<float>(kPowers[exponent]) * mean;
      map.push_back(value);
      if (has_sign) map.push_back(-value);
    }
  }
  std::sort(map.begin(), map.end());
  CHECK_EQ(map.size(), 256u);
  return map;
}

int32_t CodeBySearch(const float* midpoints, float value) {
  return static_cast<int32_t>(std::lower_bound(midpoints, midpoints + 255, value) - midpoints);
}

std::unique_ptr<DynamicEncoder> MakeEncoder(const float* map) {
  auto encoder = std::make_unique<DynamicEncoder>();
  encoder->map = map;
  for (int i = 0; i < 255; ++i) encoder->midpoints[i] = (map[i] + map[i + 1]) * 0.5f;
  encoder->midpoints[255] = std::numeric_limits<float>::infinity();
  constexpr int32_t kRanges = DynamicEncoder::kRanges;
  for (int32_t range = 0; range < kRanges; ++range) {
    const uint32_t top = static_cast<uint32_t>(range + DynamicEncoder::kLowest) << 16;
    const float near = range == 0 ? 0.0f : std::bit_cast<float>(top);
    const float far = std::bit_cast<float>(top | 0xffff);
    const int32_t positive = CodeBySearch(encoder->midpoints, near);
    const int32_t negative = CodeBySearch(encoder->midpoints, -far);
    CHECK_LE(CodeBySearch(encoder->midpoints, far) - positive, 1);
    CHECK_LE(CodeBySearch(encoder->midpoints, -near) - negative, 1);
    encoder->first_code[range] = positive;
    encoder->first_code[kRanges + range] = negative;
  }
  return encoder;
}

}  // namespace

const float* SignedDynamicMap() {
  static const std::vector<float> map = MakeMap(/*has_sign=*/true);
  return map.data();
}

const float* UnsignedDynamicMap() {
  static const std::vector<float> map = MakeMap(/*has_sign=*/false);
  return map.data();
}

const DynamicEncoder& SignedDynamicEncoder() {
  static const std::unique_ptr<DynamicEncoder> encoder = MakeEncoder(SignedDynamicMap());
  return *encoder;
}

const DynamicEncoder& UnsignedDynamicEncoder() {
  static const std::unique_ptr<DynamicEncoder> encoder = MakeEncoder(UnsignedDynamicMap());
  return *encoder;
}

}  // namespace thimble
