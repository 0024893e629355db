#include "ops/format.h"

#include <cstring>

#include "ops/check.h"

namespace thimble {
namespace {

constexpr FormatInfo kFormats[] = {
    {"f32", 1, 32}, {"bf16", 1, 16}, {"f16", 1, 16}, {"nf4", 2, 4}, {"fp4", 2, 4},
};

}  // namespace

const FormatInfo& InfoOf(Format format) { return kFormats[static_cast<int>(format)]; }

float BF16ToFloat(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t FloatToBF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>((bits >> 16) | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
  const uint32_t exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 0x3ff;
  uint32_t wide;
  if (exponent == 31) {
    wide = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent != 0) {
    wide = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&wide, &magnitude, sizeof(wide));
    wide |= sign;
  }
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

uint16_t FloatToF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return sign | 0x7e00;
  if (bits >= 0x477ff000) return sign | 0x7c00;  // rounds to 2^16 or beyond
  if (bits < 0x38800000) {                       // below 2^-14: the sum rounds to a multiple of 2^-24
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof(magnitude));
    magnitude += 0.5f;
    uint32_t sum;
    std::memcpy(&sum, &magnitude, sizeof(sum));
    return sign | static_cast<uint16_t>(sum - 0x3f000000);
  }
  return sign | static_cast<uint16_t>((bits + 0xfff + ((bits >> 13) & 1) - 0x38000000) >> 13);
}

void DecodeRow(const WeightView& w, int64_t row, int64_t col, int64_t count, float* out) {
  const int64_t begin = row * w.cols + col;
  switch (w.format) {
    case Format::kF32:
      std::memcpy(out, static_cast<const float*>(w.data) + begin, count * sizeof(float));
      return;
    case Format::kBF16:
      for (int64_t i = 0; i < count; ++i) out[i] = BF16ToFloat(static_cast<const uint16_t*>(w.data)[begin + i]);
      return;
    case Format::kF16:
      for (int64_t i = 0; i < count; ++i) out[i] = F16ToFloat(static_cast<const uint16_t*>(w.data)[begin + i]);
      return;
    case Format::kNF4:
    case Format::kFP4:
      CHECK(false) << "4-bit decode";
  }
}

}  // namespace thimble
