#include "ops/quantize_blocks.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "ops/check.h"
#include "ops/decode_blocks.h"
#include "ops/parallel.h"
#include "ops/quantize_k_blocks.h"

namespace thimble {
namespace {

void StoreHalf(float value, uint8_t* at) {
  const uint16_t bits = FloatToF16(value);
  std::memcpy(at, &bits, sizeof(bits));
}

float Reciprocal(float d) { return d != 0 ? 1 / d : 0; }

// The element of largest magnitude, the first of equal ones.
float SignedPeak(const float* x, int n) {
  float peak = 0, magnitude = 0;
  for (int j = 0; j < n; ++j) {
    if (magnitude < std::fabs(x[j])) {
      magnitude = std::fabs(x[j]);
      peak = x[j];
    }
  }
  return peak;
}

float Peak(const float* x, int n) { return std::fabs(SignedPeak(x, n)); }

// Nibbles of 32 codes: element j low, element j + 16 high.
void PackNibbles(const uint8_t* codes, uint8_t* out) {
  for (int j = 0; j < 16; ++j) out[j] = static_cast<uint8_t>((codes[j] & 15) | (codes[j + 16] & 15) << 4);
}

void PackFifthBits(const uint8_t* codes, uint8_t* out) {
  uint32_t bits = 0;
  for (int j = 0; j < 32; ++j) bits |= static_cast<uint32_t>(codes[j] >> 4 & 1) << j;
  std::memcpy(out, &bits, sizeof(bits));
}

// Where a reciprocal scale overflowed, products are infinite or NaN: x86 converts them to an integer whose low bytes
// are 0.
int ToInt(float value) { return std::fabs(value) < 2e9f ? static_cast<int>(value) : 0; }

// A code that truncation gives, no larger than `most`; ggml narrows it through 8 bits.
uint8_t Truncated(float value, int most) {
  return static_cast<uint8_t>(std::min(most, static_cast<int>(static_cast<int8_t>(ToInt(value)))));
}

// q4_0 and q5_0: `levels` codes around 0, which is levels / 2.
void EncodeSymmetric(const float* x, int levels, uint8_t* scale, uint8_t* codes) {
  const int zero = levels / 2;
  const float d = SignedPeak(x, 32) / static_cast<float>(-zero);
  const float inverse = Reciprocal(d);
  StoreHalf(d, scale);
  const float middle = static_cast<float>(zero) + 0.5f;
  for (int j = 0; j < 32; ++j) codes[j] = Truncated(x[j] * inverse + middle, levels - 1);
}

void EncodeQ4_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  EncodeSymmetric(x, 16, out, codes);
  PackNibbles(codes, out + 2);
}

void EncodeQ5_0(const float* x, uint8_t* out) {
  uint8_t codes[32];
  EncodeSymmetric(x, 32, out, codes);
  PackFifthBits(codes, out + 2);
  PackNibbles(codes, out + 6);
}

// q4_1 and q5_1: codes 0 .. most above the minimum.
void EncodeFromMinimum(const float* x, int most, uint8_t* scale_and_min, uint8_t* codes) {
  float low = x[0], high = x[0];
  for (int j = 1; j < 32; ++j) {
    low = x[j] < low ? x[j] : low;
    high = x[j] > high ? x[j] : high;
  }
  const float d = (high - low) / static_cast<float>(most);
  const float inverse = Reciprocal(d);
  StoreHalf(d, scale_and_min);
  StoreHalf(low, scale_and_min + 2);
  for (int j = 0; j < 32; ++j) codes[j] = Truncated((x[j] - low) * inverse + 0.5f, most);
}

void EncodeQ4_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  EncodeFromMinimum(x, 15, out, codes);
  PackNibbles(codes, out + 4);
}

void EncodeQ5_1(const float* x, uint8_t* out) {
  uint8_t codes[32];
  EncodeFromMinimum(x, 31, out, codes);
  PackFifthBits(codes, out + 4);
  PackNibbles(codes, out + 8);
}

void EncodeQ8_0(const float* x, uint8_t* out) {
  const float d = Peak(x, 32) / 127;
  const float inverse = Reciprocal(d);
  StoreHalf(d, out);
  for (int j = 0; j < 32; ++j) out[2 + j] = static_cast<uint8_t>(ToInt(std::round(x[j] * inverse)));
}

// 0, 1 or 2 for -1, 0 and 1 times the peak; returns the peak.
float Ternary(const float* x, uint8_t* trits) {
  const float d = Peak(x, 256);
  const float inverse = Reciprocal(d);
  for (int j = 0; j < 256; ++j) trits[j] = static_cast<uint8_t>(ToInt(std::round(x[j] * inverse)) + 1);
  return d;
}

// `count` trits, `stride` apart, as one fraction of 256 in base 3.
uint8_t PackTrits(const uint8_t* trits, int stride, int count) {
  int value = 0;
  for (int n = 0; n < 5; ++n) value = value * 3 + (n < count ? trits[n * stride] : 0);
  return static_cast<uint8_t>((value * 256 + 242) / 243);
}

void EncodeTQ1_0(const float* x, uint8_t* out) {
  uint8_t trits[256];
  const float d = Ternary(x, trits);
  for (int m = 0; m < 32; ++m) out[m] = PackTrits(trits + m, 32, 5);
  for (int m = 0; m < 16; ++m) out[32 + m] = PackTrits(trits + 160 + m, 16, 5);
  for (int j = 0; j < 4; ++j) out[48 + j] = PackTrits(trits + 240 + j, 4, 4);
  StoreHalf(d, out + 52);
}

void EncodeTQ2_0(const float* x, uint8_t* out) {
  uint8_t trits[256];
  const float d = Ternary(x, trits);
  for (int half = 0; half < 2; ++half) {
    for (int m = 0; m < 32; ++m) {
      const uint8_t* t = trits + 128 * half + m;
      out[32 * half + m] = static_cast<uint8_t>(t[0] | t[32] << 2 | t[64] << 4 | t[96] << 6);
    }
  }
  StoreHalf(d, out + 64);
}

// The code whose value is nearest, the first of equally near ones (which is never -0).
uint8_t NearestE2M1(float x, float half_scale) {
  int best = 0;
  float least = std::fabs(kDoubledE2M1[0] * half_scale - x);
  for (int code = 1; code < 16; ++code) {
    const float error = std::fabs(kDoubledE2M1[code] * half_scale - x);
    if (error < least) {
      least = error;
      best = code;
    }
  }
  return static_cast<uint8_t>(best);
}

void EncodeMXFP4(const float* x, uint8_t* out) {
  const float peak = Peak(x, 32);
  // Below 2^-125 there is no smaller scale than 2^-127.
  const int e = peak > 0 ? static_cast<int>(std::floor(std::log2(peak))) - 2 + 127 : 0;
  out[0] = static_cast<uint8_t>(std::max(e, 0));
  const float d = HalfE8M0(out[0]);
  uint8_t codes[32];
  for (int j = 0; j < 32; ++j) codes[j] = NearestE2M1(x[j], d);
  PackNibbles(codes, out + 1);
}

// Nearest UE4M3, halves up; at most 448.
uint8_t RoundToUE4M3(float x) {
  if (!(x > 0)) return 0;
  if (x > 448) x = 448;
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  const int exponent = static_cast<int>(bits >> 23 & 255) - 127 + 7;
  if (exponent <= 0) return static_cast<uint8_t>(std::min(7, static_cast<int>(x * 512 + 0.5f)));
  const uint32_t rounded = (static_cast<uint32_t>(exponent) << 3 | (bits >> 20 & 7)) + (bits >> 19 & 1);
  return static_cast<uint8_t>(std::min<uint32_t>(rounded, 0x7e));
}

void EncodeNVFP4(const float* x, uint8_t* out) {
  for (int s = 0; s < 4; ++s) {
    out[s] = RoundToUE4M3(Peak(x + 16 * s, 16) / 6);
    const float d = HalfUE4M3(out[s]);
    for (int j = 0; j < 8; ++j) {
      const float* pair = x + 16 * s + j;
      out[4 + 8 * s + j] = static_cast<uint8_t>(NearestE2M1(pair[0], d) | NearestE2M1(pair[8], d) << 4);
    }
  }
}

// From Format::kQ4_0 on.
constexpr void (*kEncoders[])(const float* x, uint8_t* out) = {EncodeQ4_0,  EncodeQ4_1,  EncodeQ5_0,  EncodeQ5_1,
                                                               EncodeQ8_0,  EncodeQ4K,   EncodeQ5K,   EncodeQ6K,
                                                               EncodeTQ1_0, EncodeTQ2_0, EncodeMXFP4, EncodeNVFP4};
static_assert(sizeof(kEncoders) / sizeof(kEncoders[0]) == kFormats - static_cast<int>(Format::kQ4_0));

}  // namespace

int64_t QuantizeBlocks(Format format, ConstVector values, uint8_t* out) {
  CHECK(IsBlockFormat(format));
  const FormatInfo& info = InfoOf(format);
  const auto encode = kEncoders[static_cast<int>(format) - static_cast<int>(Format::kQ4_0)];
  CHECK_EQ(values.size % info.values_per_block, 0);
  const int64_t blocks = values.size / info.values_per_block;
  std::atomic<int64_t> bad{blocks};
  ParallelRanges(blocks, std::max<int64_t>(1, 4096 / info.values_per_block), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const float* x = values.data + b * info.values_per_block;
      if (std::all_of(x, x + info.values_per_block, [](float v) { return std::isfinite(v); })) {
        encode(x, out + b * info.bytes_per_block);
        continue;
      }
      int64_t least = bad.load();
      while (b < least && !bad.compare_exchange_weak(least, b)) {
      }
      return;
    }
  });
  return bad == blocks ? -1 : bad.load();
}

}  // namespace thimble
