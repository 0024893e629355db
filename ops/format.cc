#include "ops/format.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

namespace thimble {
namespace {

// In the order of Format.
constexpr FormatInfo kInfos[] = {
    {"f32", 1, 4},       {"bf16", 1, 2},     {"f16", 1, 2},      {"nf4", 2, 1},      {"fp4", 2, 1},
    {"int4", 2, 1},      {"e2m1", 2, 1},     {"int8", 1, 1},     {"fp8_e4m3", 1, 1}, {"fp8_e5m2", 1, 1},
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
constexpr float kInt4Codebook[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr float kE2M1Codebook[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                     -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

uint32_t BitsOf(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// An 8-bit float with `mantissa` bits behind the exponent's, whose denormals are multiples of 2^-least; without what
// the largest exponent stands for.
float SmallFloat(uint8_t bits, int mantissa, int least) {
  const int exponent = (bits & 0x7f) >> mantissa, fraction = bits & ((1 << mantissa) - 1);
  const int significand = exponent == 0 ? fraction : fraction + (1 << mantissa);
  const float magnitude = std::ldexp(static_cast<float>(significand), (exponent == 0 ? 0 : exponent - 1) - least);
  return bits & 0x80 ? -magnitude : magnitude;
}

// The nearest one of |value| below the overflow, ties to even.
uint8_t ToSmallFloat(uint32_t magnitude, int mantissa, int least) {
  const int shift = 23 - mantissa;
  const uint32_t smallest_normal = static_cast<uint32_t>(mantissa - least + 127) << 23;
  if (magnitude < smallest_normal) {  // the sum rounds to a multiple of 2^-least
    const uint32_t one = static_cast<uint32_t>(23 - least + 127) << 23;
    return static_cast<uint8_t>(BitsOf(FromBits(magnitude) + FromBits(one)) - one);
  }
  const uint32_t rounded = magnitude + (1u << (shift - 1)) - 1 + ((magnitude >> shift) & 1);
  return static_cast<uint8_t>((rounded - smallest_normal + (1u << 23)) >> shift);
}

template <typename Decode>
std::array<float, 256> ByteTable(const Decode& decode) {
  std::array<float, 256> table;
  for (int code = 0; code < 256; ++code) table[code] = decode(static_cast<uint8_t>(code));
  return table;
}

}  // namespace

const FormatInfo& InfoOf(Format format) { return kInfos[static_cast<int>(format)]; }

int64_t StoredBytes(Format format, int64_t values) {
  const FormatInfo& info = InfoOf(format);
  return values / info.values_per_block * info.bytes_per_block;
}

const float* Codebook(Format format) {
  static const auto int8 = ByteTable([](uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); });
  static const auto e4m3 = ByteTable(E4M3ToFloat);
  static const auto e5m2 = ByteTable(E5M2ToFloat);
  switch (format) {
    case Format::kNF4:
      return kNF4Codebook;
    case Format::kFP4:
      return kFP4Codebook;
    case Format::kInt4:
      return kInt4Codebook;
    case Format::kE2M1:
      return kE2M1Codebook;
    case Format::kInt8:
      return int8.data();
    case Format::kE4M3:
      return e4m3.data();
    case Format::kE5M2:
      return e5m2.data();
    default:
      return nullptr;
  }
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

float E4M3ToFloat(uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  return SmallFloat(bits, 3, 9);
}

uint8_t FloatToE4M3(float value) {
  const uint32_t bits = BitsOf(value), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= BitsOf(448)) return sign | 0x7e;
  return sign | ToSmallFloat(magnitude, 3, 9);
}

float E5M2ToFloat(uint8_t bits) {
  if ((bits & 0x7f) > 0x7c) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude =
      (bits & 0x7f) == 0x7c ? std::numeric_limits<float>::infinity() : SmallFloat(bits & 0x7f, 2, 16);
  return bits & 0x80 ? -magnitude : magnitude;
}

uint8_t FloatToE5M2(float value) {
  const uint32_t bits = BitsOf(value), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80);
  if (magnitude > 0x7f800000) return sign | 0x7f;
  if (magnitude >= BitsOf(61440)) return sign | 0x7c;
  return sign | ToSmallFloat(magnitude, 2, 16);
}

uint8_t FloatToE2M1(float value) {
  const uint32_t bits = BitsOf(value), magnitude = bits & 0x7fffffff;
  const auto sign = static_cast<uint8_t>(bits >> 28 & 8);
  if (magnitude >= BitsOf(6)) return sign | 7;
  return sign | ToSmallFloat(magnitude, 1, 1);
}

}  // namespace thimble
