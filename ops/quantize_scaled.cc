#include "ops/quantize_scaled.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

constexpr float kLeastScale = std::numeric_limits<float>::min();
constexpr float kLeastTensorScale = 0x1p-119f;  // 1 / s_t / 2^-6 is finite
// Codes of one encoder's call, so that packing nibbles needs no second pass.
constexpr int64_t kPiece = 256;

float Peak(const float* x, int64_t n) {
  float peak = 0;
  for (int64_t i = 0; i < n; ++i) peak = std::max(peak, std::fabs(x[i]));
  return peak;
}

bool Finite(const float* x, int64_t n) {
  float poison = 0;  // NaN as soon as one value is not finite
  for (int64_t i = 0; i < n; ++i) poison += x[i] * 0.0f;
  return poison == 0;
}

// rne(value) within the bounds; the clamp comes first, as beyond them an integer might not hold it.
int RoundWithin(float value, int least, int most) {
  const float clamped = std::clamp(value, static_cast<float>(least - 1), static_cast<float>(most + 1));
  return std::clamp(static_cast<int>(std::nearbyint(clamped)), least, most);
}

// The codes of part of a group, one a byte, by its scale or for e2m1 the factor of its values.
void Encode(Format format, const float* x, int64_t n, float scale, uint8_t* codes) {
  const float inverse = 1 / scale;
  switch (format) {
    case Format::kInt4:
      for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(RoundWithin(x[i] * inverse, -8, 7) + 8);
      return;
    case Format::kInt8:
      for (int64_t i = 0; i < n; ++i) codes[i] = static_cast<uint8_t>(RoundWithin(x[i] * inverse, -128, 127));
      return;
    case Format::kE4M3:
      for (int64_t i = 0; i < n; ++i) codes[i] = scale == 0 ? 0 : FloatToE4M3(x[i] / scale);
      return;
    case Format::kE5M2:
      for (int64_t i = 0; i < n; ++i) {
        codes[i] = scale == 0 ? 0 : FloatToE5M2(std::clamp(x[i] / scale, -57344.0f, 57344.0f));
      }
      return;
    default:
      for (int64_t i = 0; i < n; ++i) codes[i] = FloatToE2M1(x[i] * scale);
  }
}

float ScaleOf(Format format, float peak) {
  switch (format) {
    case Format::kInt4:
      return std::max(peak / 7.5f, kLeastScale);
    case Format::kInt8:
      return std::max(peak / 127.5f, kLeastScale);
    case Format::kE4M3:
      return peak / 448;
    default:
      return peak / 57344;
  }
}

// Codes of a group, from element `at` of the weight on.
void EncodeGroup(Format format, const float* x, int64_t n, float scale, int64_t at, uint8_t* codes) {
  if (!HasNibbles(format)) return Encode(format, x, n, scale, codes + at);
  CHECK_EQ(at % 2, 0);
  uint8_t piece[kPiece];
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t count = std::min(kPiece, n - first);
    Encode(format, x + first, count, scale, piece);
    uint8_t* to = codes + (at + first) / 2;
    for (int64_t i = 0; i < count; i += 2) to[i / 2] = static_cast<uint8_t>(piece[i] << 4 | piece[i + 1]);
  }
}

// Where a weight is written.
struct Target {
  Format format;
  int64_t rows, cols;
  int32_t group;
  uint8_t* codes;
  float* absmax;
  uint8_t* absmax_codes;
  float tensor_scale;
};

// The scale of a group, stored, and what Encode takes for it.
float StoreScale(const float* x, int64_t block, const Target& w) {
  const float peak = Peak(x, w.group);
  if (w.format != Format::kE2M1) return w.absmax[block] = ScaleOf(w.format, peak);
  const uint8_t code = FloatToE4M3(std::clamp(peak / 6 / w.tensor_scale, 0x1p-6f, 448.0f));
  w.absmax_codes[block] = code;
  return 1 / w.tensor_scale / E4M3ToFloat(code);
}

bool QuantizeRows(ConstVector values, int64_t first, const Target& w) {
  const int64_t group = w.group, begin_at = first * w.cols;
  CHECK_EQ(values.size % w.cols, 0);
  CHECK_LE(begin_at + values.size, w.rows * w.cols);
  std::atomic<bool> finite{true};
  ParallelRanges(values.size / group, std::max<int64_t>(1, 16384 / group), [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const float* x = values.data + b * group;
      if (!Finite(x, group)) {
        finite = false;
        return;
      }
      const int64_t at = begin_at + b * group;
      const float scale = StoreScale(x, at / group, w);
      EncodeGroup(w.format, x, group, scale, at, w.codes);
    }
  });
  return finite;
}

void QuantizeToken(const float* x, int64_t n, bool symmetric, int8_t* codes, float* scale, int32_t* zero) {
  float low = 0, high = 0;
  for (int64_t i = 0; i < n; ++i) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  *scale = std::max(symmetric ? std::max(-low, high) / 127.5f : (high - low) / 255, kLeastScale);
  *zero = symmetric ? 0 : std::clamp(-128 - static_cast<int>(std::nearbyint(low / *scale)), -128, 127);
  const float inverse = 1 / *scale;
  for (int64_t i = 0; i < n; ++i) {
    codes[i] = static_cast<int8_t>(std::clamp(RoundWithin(x[i] * inverse, -512, 512) + *zero, -128, 127));
  }
}

}  // namespace

const std::vector<ScaledScheme>& ScaledSchemes() {
  static const auto* schemes = new std::vector<ScaledScheme>{
      {"int8", Format::kInt8, 0},      {"int4", Format::kInt4, 0},        {"int4_g32", Format::kInt4, 32},
      {"int4_g64", Format::kInt4, 64}, {"int4_g128", Format::kInt4, 128}, {"fp8_e4m3", Format::kE4M3, 0},
      {"fp8_e5m2", Format::kE5M2, 0},  {"nvfp4", Format::kE2M1, 16},
  };
  return *schemes;
}

const ScaledScheme* FindScaledScheme(std::string_view name) {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    if (scheme.name == name) return &scheme;
  }
  return nullptr;
}

std::string_view SchemeName(Format format, int32_t group) {
  for (const ScaledScheme& scheme : ScaledSchemes()) {
    if (scheme.format == format && scheme.group == group) return scheme.name;
  }
  return InfoOf(format).name;
}

int64_t GroupOf(Format format, int32_t group, int64_t cols) {
  const int64_t size = group == 0 ? cols : group;
  if (size < 1 || cols % size != 0 || (HasNibbles(format) && size % 2 != 0)) return 0;
  return size <= std::numeric_limits<int32_t>::max() ? size : 0;
}

QuantizedWeight MakeScaledWeight(Format format, int64_t rows, int64_t cols, int64_t group) {
  CHECK(HasScales(format) && !Is4Bit(format));
  CHECK_EQ(cols % group, 0);
  QuantizedWeight w;
  w.format = format;
  w.rows = rows;
  w.cols = cols;
  w.block_size = static_cast<int32_t>(group);
  const int64_t blocks = rows * (cols / group);
  w.codes.resize(StoredBytes(format, rows * cols));
  if (format != Format::kE2M1) {
    w.absmax.resize(blocks);
    return w;
  }
  w.absmax_codes.resize(blocks);
  w.absmax_map.resize(256);
  w.nested_absmax.assign((blocks + kNestedBlockSize - 1) / kNestedBlockSize, 1.0f);
  return w;
}

int64_t ScaledBytes(Format format, int64_t rows, int64_t cols, int64_t group, bool offsets, bool columns) {
  const int64_t blocks = rows * (cols / group), nested = (blocks + kNestedBlockSize - 1) / kNestedBlockSize;
  const int64_t scales = format == Format::kE2M1 ? blocks + 256 * 4 + nested * 4 : blocks * 4;
  return StoredBytes(format, rows * cols) + scales + (offsets ? blocks * 4 : 0) + (columns ? cols * 4 : 0);
}

void SetTensorScale(float amax, QuantizedWeight* w) {
  w->tensor_scale = amax == 0 ? 1 : std::max(amax / 2688, kLeastTensorScale);
  for (int code = 0; code < 256; ++code) {
    const float value = E4M3ToFloat(static_cast<uint8_t>(code));
    w->absmax_map[code] = std::isnan(value) ? 0 : value * w->tensor_scale;
  }
}

bool QuantizeScaledRows(ConstVector values, int64_t first, QuantizedWeight* w) {
  return QuantizeRows(values, first,
                      {w->format, w->rows, w->cols, w->block_size, w->codes.data(), w->absmax.data(),
                       w->absmax_codes.data(), w->tensor_scale});
}

bool QuantizeScaledRows(ConstVector values, int64_t first, const WeightView& w) {
  CHECK(w.absmax != nullptr);
  auto* codes = static_cast<uint8_t*>(const_cast<void*>(w.data));
  return QuantizeRows(values, first,
                      {w.format, w.rows, w.cols, w.block_size, codes, const_cast<float*>(w.absmax), nullptr, 0});
}

void QuantizeTokensInt8(ConstMatrix x, bool symmetric, int8_t* codes, Vector scales, int32_t* zeros) {
  CHECK_EQ(scales.size, x.rows);
  ParallelRanges(x.rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, x.cols)), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      QuantizeToken(x.data + r * x.stride, x.cols, symmetric, codes + r * x.cols, &scales[r], &zeros[r]);
    }
  });
}

}  // namespace thimble
