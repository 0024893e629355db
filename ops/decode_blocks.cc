#include "ops/decode_blocks.h"

#include <cstring>

#include "ops/check.h"
#include "ops/cpu_level.h"

namespace thimble {

float HalfE8M0(uint8_t e) {
  // Below 2^-126 the value is a denormal.
  const uint32_t bits = e < 2 ? uint32_t{0x00200000} << e : static_cast<uint32_t>(e - 1) << 23;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float HalfUE4M3(uint8_t bits) {
  if (bits == 0x7f) return 0;
  const int exponent = bits >> 3 & 15;
  const float mantissa = static_cast<float>(bits & 7);
  if (exponent == 0) return mantissa * 0x1p-10f;
  const uint32_t power = static_cast<uint32_t>(exponent - 8 + 127) << 23;
  float value;
  std::memcpy(&value, &power, sizeof(value));
  return (1 + mantissa / 8) * value;
}

namespace {

// One decoder a format, written once and compiled for each level: Decode<format>::Block(block, out).
#define THIMBLE_BLOCK_INLINE __attribute__((always_inline)) static inline

float HalfAt(const uint8_t* at) {
  uint16_t bits;
  std::memcpy(&bits, at, sizeof(bits));
  return F16ToFloat(bits);
}

template <Format kFormat>
struct Decode;

template <>
struct Decode<Format::kQ4_0> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in);
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>((in[2 + j] & 15) - 8) * d;
      out[j + 16] = static_cast<float>((in[2 + j] >> 4) - 8) * d;
    }
  }
};

template <>
struct Decode<Format::kQ4_1> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in), m = HalfAt(in + 2);
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>(in[4 + j] & 15) * d + m;
      out[j + 16] = static_cast<float>(in[4 + j] >> 4) * d + m;
    }
  }
};

template <>
struct Decode<Format::kQ5_0> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in);
    uint32_t high;
    std::memcpy(&high, in + 2, sizeof(high));
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>(static_cast<int>((in[6 + j] & 15) | (high >> j & 1) << 4) - 16) * d;
      out[j + 16] = static_cast<float>(static_cast<int>((in[6 + j] >> 4) | (high >> (j + 16) & 1) << 4) - 16) * d;
    }
  }
};

template <>
struct Decode<Format::kQ5_1> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in), m = HalfAt(in + 2);
    uint32_t high;
    std::memcpy(&high, in + 4, sizeof(high));
    for (int j = 0; j < 16; ++j) {
      out[j] = static_cast<float>((in[8 + j] & 15) | (high >> j & 1) << 4) * d + m;
      out[j + 16] = static_cast<float>((in[8 + j] >> 4) | (high >> (j + 16) & 1) << 4) * d + m;
    }
  }
};

template <>
struct Decode<Format::kQ8_0> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in);
    for (int j = 0; j < 32; ++j) out[j] = static_cast<float>(static_cast<int8_t>(in[2 + j])) * d;
  }
};

template <>
struct Decode<Format::kQ4K> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in), dmin = HalfAt(in + 2);
    for (int c = 0; c < 4; ++c) {
      const uint8_t* q = in + 16 + 32 * c;
      uint8_t s, m;
      UnpackScaleAndMin(2 * c, in + 4, &s, &m);
      const float low = d * static_cast<float>(s), low_min = dmin * static_cast<float>(m);
      UnpackScaleAndMin(2 * c + 1, in + 4, &s, &m);
      const float high = d * static_cast<float>(s), high_min = dmin * static_cast<float>(m);
      for (int l = 0; l < 32; ++l) out[64 * c + l] = low * static_cast<float>(q[l] & 15) - low_min;
      for (int l = 0; l < 32; ++l) out[64 * c + 32 + l] = high * static_cast<float>(q[l] >> 4) - high_min;
    }
  }
};

template <>
struct Decode<Format::kQ5K> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in), dmin = HalfAt(in + 2);
    const uint8_t* fifth = in + 16;
    for (int c = 0; c < 4; ++c) {
      const uint8_t* q = in + 48 + 32 * c;
      uint8_t s, m;
      UnpackScaleAndMin(2 * c, in + 4, &s, &m);
      const float low = d * static_cast<float>(s), low_min = dmin * static_cast<float>(m);
      UnpackScaleAndMin(2 * c + 1, in + 4, &s, &m);
      const float high = d * static_cast<float>(s), high_min = dmin * static_cast<float>(m);
      for (int l = 0; l < 32; ++l) {
        out[64 * c + l] = low * static_cast<float>((q[l] & 15) + (fifth[l] >> (2 * c) & 1) * 16) - low_min;
      }
      for (int l = 0; l < 32; ++l) {
        out[64 * c + 32 + l] = high * static_cast<float>((q[l] >> 4) + (fifth[l] >> (2 * c + 1) & 1) * 16) - high_min;
      }
    }
  }
};

template <>
struct Decode<Format::kQ6K> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in + 208);
    float scale[16];
    for (int j = 0; j < 16; ++j) scale[j] = d * static_cast<float>(static_cast<int8_t>(in[192 + j]));
    for (int half = 0; half < 2; ++half) {
      const uint8_t* low = in + 64 * half;
      const uint8_t* high = in + 128 + 32 * half;
      for (int part = 0; part < 4; ++part) {
        const uint8_t* nibbles = low + 32 * (part & 1);
        float* values = out + 128 * half + 32 * part;
        const float* s = scale + 8 * half + 2 * part;
        for (int l = 0; l < 32; ++l) {
          const int q = (nibbles[l] >> (part & 2) * 2 & 15) | (high[l] >> 2 * part & 3) << 4;
          values[l] = s[l / 16] * static_cast<float>(q - 32);
        }
      }
    }
  }
};

template <>
struct Decode<Format::kTQ1_0> {
  // Digit `n` (0: the most significant) of the five trits of a byte, less one.
  THIMBLE_BLOCK_INLINE float Trit(uint8_t byte, int power) {
    const int shifted = static_cast<uint8_t>(byte * power);
    return static_cast<float>((shifted * 3 >> 8) - 1);
  }
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    constexpr int kPowers[5] = {1, 3, 9, 27, 81};
    const float d = HalfAt(in + 52);
    for (int n = 0; n < 5; ++n) {
      for (int m = 0; m < 32; ++m) out[m + 32 * n] = Trit(in[m], kPowers[n]) * d;
      for (int m = 0; m < 16; ++m) out[160 + m + 16 * n] = Trit(in[32 + m], kPowers[n]) * d;
    }
    for (int n = 0; n < 4; ++n) {
      for (int j = 0; j < 4; ++j) out[240 + j + 4 * n] = Trit(in[48 + j], kPowers[n]) * d;
    }
  }
};

template <>
struct Decode<Format::kTQ2_0> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfAt(in + 64);
    for (int part = 0; part < 8; ++part) {
      const uint8_t* q = in + 32 * (part / 4);
      for (int m = 0; m < 32; ++m) out[32 * part + m] = static_cast<float>((q[m] >> 2 * (part & 3) & 3) - 1) * d;
    }
  }
};

template <>
struct Decode<Format::kMXFP4> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    const float d = HalfE8M0(in[0]);
    for (int j = 0; j < 16; ++j) {
      out[j] = kDoubledE2M1[in[1 + j] & 15] * d;
      out[j + 16] = kDoubledE2M1[in[1 + j] >> 4] * d;
    }
  }
};

template <>
struct Decode<Format::kNVFP4> {
  THIMBLE_BLOCK_INLINE void Block(const uint8_t* in, float* out) {
    for (int s = 0; s < 4; ++s) {
      const float d = HalfUE4M3(in[s]);
      const uint8_t* q = in + 4 + 8 * s;
      for (int j = 0; j < 8; ++j) {
        out[16 * s + j] = kDoubledE2M1[q[j] & 15] * d;
        out[16 * s + 8 + j] = kDoubledE2M1[q[j] >> 4] * d;
      }
    }
  }
};

using Decoder = void (*)(const uint8_t* in, int64_t blocks, float* out);

// Bytes and values of a block are known to the compiler here.
template <Format kFormat, int kValues, int kBytes>
struct Loops {
  static void Portable(const uint8_t* in, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b) Decode<kFormat>::Block(in + b * kBytes, out + b * kValues);
  }
#if defined(__x86_64__)
  __attribute__((target("avx2"))) static void Avx2(const uint8_t* in, int64_t blocks, float* out) {
    for (int64_t b = 0; b < blocks; ++b) Decode<kFormat>::Block(in + b * kBytes, out + b * kValues);
  }
#else
  static constexpr Decoder Avx2 = Portable;
#endif
};

struct DecoderPair {
  Decoder portable;
  Decoder avx2;
};
template <Format kFormat, int kValues, int kBytes>
constexpr DecoderPair kPair = {Loops<kFormat, kValues, kBytes>::Portable, Loops<kFormat, kValues, kBytes>::Avx2};

// From Format::kQ4_0 on.
constexpr DecoderPair kDecoders[] = {
    kPair<Format::kQ4_0, 32, 18>,   kPair<Format::kQ4_1, 32, 20>,  kPair<Format::kQ5_0, 32, 22>,
    kPair<Format::kQ5_1, 32, 24>,   kPair<Format::kQ8_0, 32, 34>,  kPair<Format::kQ4K, 256, 144>,
    kPair<Format::kQ5K, 256, 176>,  kPair<Format::kQ6K, 256, 210>, kPair<Format::kTQ1_0, 256, 54>,
    kPair<Format::kTQ2_0, 256, 66>, kPair<Format::kMXFP4, 32, 17>, kPair<Format::kNVFP4, 64, 36>,
};
static_assert(sizeof(kDecoders) / sizeof(kDecoders[0]) == kFormats - static_cast<int>(Format::kQ4_0));

const DecoderPair& DecodersOf(Format format) {
  DCHECK(IsBlockFormat(format));
  return kDecoders[static_cast<int>(format) - static_cast<int>(Format::kQ4_0)];
}

}  // namespace

void DecodeBlocks(Format format, const void* in, int64_t blocks, float* out) {
  const DecoderPair& decoders = DecodersOf(format);
  const bool avx2 = ActiveCpuLevel() >= CpuLevel::kAvx2;
  (avx2 ? decoders.avx2 : decoders.portable)(static_cast<const uint8_t*>(in), blocks, out);
}

void DecodeBlocksPortable(Format format, const void* in, int64_t blocks, float* out) {
  DecodersOf(format).portable(static_cast<const uint8_t*>(in), blocks, out);
}

}  // namespace thimble
