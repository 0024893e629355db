#include "ops/format.h"

#include <cstring>

namespace thimble {
namespace {

// In the order of Format.
constexpr FormatInfo kInfos[] = {
    {"f32", 1, 4},       {"bf16", 1, 2},     {"f16", 1, 2},      {"nf4", 2, 1},      {"fp4", 2, 1},
    {"ternary", 64, 16}, {"q4_0", 32, 18},   {"q4_1", 32, 20},   {"q5_0", 32, 22},   {"q5_1", 32, 24},
    {"q8_0", 32, 34},    {"q4_k", 256, 144}, {"q5_k", 256, 176}, {"q6_k", 256, 210}, {"tq1_0", 256, 54},
    {"tq2_0", 256, 66},  {"mxfp4", 32, 17},  {"nvfp4", 64, 36},
};
static_assert(sizeof(kInfos) / sizeof(kInfos[0]) == kFormats);

// QLoRA's quantiles of the normal distribution, as bitsandbytes rounds them to fp32.
constexpr float kNF4Codebook[16] = {-1.0f,
                                    -0.6961928009986877f,
                                    -0.5250730514526367f,
                                    -0.39491748809814453f,
                                    -0.28444138169288635f,
                                    -0.18477343022823334f,
                                    -0.09105003625154495f,
                                    0.0f,
                                    0.07958029955625534f,
                                    0.16093020141124725f,
                                    0.24611230194568634f,
                                    0.33791524171829224f,
                                    0.44070982933044434f,
                                    0.5626170039176941f,
                                    0.7229568362236023f,
                                    1.0f};
// Bit 3 is the sign; the magnitudes are twelfths. Both zeros are +0, as in bitsandbytes' table.
constexpr float kFP4Codebook[16] = {0.0f,
                                    static_cast<float>(0.0625 / 12),
                                    static_cast<float>(8.0 / 12),
                                    1.0f,
                                    static_cast<float>(4.0 / 12),
                                    static_cast<float>(6.0 / 12),
                                    static_cast<float>(2.0 / 12),
                                    static_cast<float>(3.0 / 12),
                                    0.0f,
                                    static_cast<float>(-0.0625 / 12),
                                    static_cast<float>(-8.0 / 12),
                                    -1.0f,
                                    static_cast<float>(-4.0 / 12),
                                    static_cast<float>(-6.0 / 12),
                                    static_cast<float>(-2.0 / 12),
                                    static_cast<float>(-3.0 / 12)};

}  // namespace

const FormatInfo& InfoOf(Format format) { return kInfos[static_cast<int>(format)]; }

int64_t StoredBytes(Format format, int64_t values) {
  const FormatInfo& info = InfoOf(format);
  return values / info.values_per_block * info.bytes_per_block;
}

const float* Codebook(Format format) {
  return format == Format::kNF4 ? kNF4Codebook : format == Format::kFP4 ? kFP4Codebook : nullptr;
}

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

}  // namespace thimble
