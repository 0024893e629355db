#include "ops/compress.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "ops/check.h"
#include "ops/row_split.h"

namespace thimble {
namespace {

int64_t Blocks(int64_t cols) { return (cols + kCompressionBlock - 1) / kCompressionBlock; }

void RowToBF16(const float* x, int64_t cols, char* packed) {
  for (int64_t i = 0; i < cols; ++i) {
    uint32_t bits;
    std::memcpy(&bits, x + i, sizeof(bits));
    const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
    const uint16_t half = static_cast<uint16_t>((nan ? bits | 0x400000u : bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    std::memcpy(packed + 2 * i, &half, sizeof(half));
  }
  // The odd half of the last word, so that equal values have equal bytes.
  if (cols % 2 == 1) std::memset(packed + 2 * cols, 0, 2);
}

void RowFromBF16(const char* packed, int64_t cols, float* x) {
  for (int64_t i = 0; i < cols; ++i) {
    uint16_t half;
    std::memcpy(&half, packed + 2 * i, sizeof(half));
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    std::memcpy(x + i, &bits, sizeof(bits));
  }
}

void BlockToInt8(const float* x, int64_t count, float* scale, int8_t* q) {
  float absmax = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) {
    absmax = std::max(absmax, std::abs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  *scale = finite ? absmax / 127 : std::numeric_limits<float>::quiet_NaN();
  // Where the scale underflows to zero, so do the values.
  const float inverse = finite && *scale > 0 ? 1 / *scale : 0;
  const bool inexact = !std::isfinite(inverse);
  for (int64_t i = 0; i < count; ++i) {
    const float units = !finite ? 0 : inexact ? x[i] / *scale : x[i] * inverse;
    q[i] = static_cast<int8_t>(std::clamp(std::nearbyint(units), -127.0f, 127.0f));
  }
}

void RowToInt8(const float* x, int64_t cols, char* packed) {
  int8_t* q = reinterpret_cast<int8_t*>(packed) + 4 * Blocks(cols);
  for (int64_t begin = 0; begin < cols; begin += kCompressionBlock) {
    const int64_t count = std::min(kCompressionBlock, cols - begin);
    float scale;
    BlockToInt8(x + begin, count, &scale, q + begin);
    std::memcpy(packed + begin / kCompressionBlock * 4, &scale, sizeof(scale));
  }
  std::memset(q + cols, 0, static_cast<size_t>((4 - cols % 4) % 4));
}

void RowFromInt8(const char* packed, int64_t cols, float* x) {
  const int8_t* q = reinterpret_cast<const int8_t*>(packed) + 4 * Blocks(cols);
  for (int64_t begin = 0; begin < cols; begin += kCompressionBlock) {
    float scale;
    std::memcpy(&scale, packed + begin / kCompressionBlock * 4, sizeof(scale));
    const int64_t end = std::min(begin + kCompressionBlock, cols);
    for (int64_t i = begin; i < end; ++i) x[i] = scale * q[i];
  }
}

}  // namespace

int64_t CompressedWords(Compression compression, int64_t cols) {
  CHECK(compression != Compression::kNone);
  if (compression == Compression::kBF16) return (cols + 1) / 2;
  return Blocks(cols) + (cols + 3) / 4;
}

void Compress(Compression compression, ConstMatrix x, Matrix packed) {
  CHECK(packed.rows == x.rows && packed.cols == CompressedWords(compression, x.cols));
  const auto row = compression == Compression::kBF16 ? RowToBF16 : RowToInt8;
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) row(x.row(r), x.cols, reinterpret_cast<char*>(packed.row(r)));
  });
}

void Decompress(Compression compression, ConstMatrix packed, Matrix x) {
  CHECK(packed.rows == x.rows && packed.cols == CompressedWords(compression, x.cols));
  const auto row = compression == Compression::kBF16 ? RowFromBF16 : RowFromInt8;
  ParallelRows(x.rows, x.cols, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) row(reinterpret_cast<const char*>(packed.row(r)), x.cols, x.row(r));
  });
}

}  // namespace thimble
