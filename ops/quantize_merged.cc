#include "ops/quantize_merged.h"

#include <algorithm>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/quantize_blocks.h"
#include "ops/quantize_scaled.h"
#include "ops/scratch_carver.h"

namespace thimble {
namespace {

constexpr int64_t kRowsAtOnce = 64;
constexpr int64_t kColumnsAtOnce = 256;  // of a row's share of the adapter

// One scale a group, which is a share of a row.
bool IsScaled(Format format) { return HasScales(format) && !Is4Bit(format) && format != Format::kE2M1; }

void Quantize(const WeightView& out, int64_t first_row, ConstVector rows) {
  if (IsScaled(out.format)) {
    QuantizeScaledRows(rows, first_row, out);
    return;
  }
  auto* to = static_cast<uint8_t*>(const_cast<void*>(out.data)) + StoredBytes(out.format, first_row * out.cols);
  if (IsBlockFormat(out.format)) {
    QuantizeBlocks(out.format, rows, to);
    return;
  }
  auto* halves = reinterpret_cast<uint16_t*>(to);
  const bool f16 = out.format == Format::kF16;
  constexpr int64_t kValues = 4096;
  ParallelFor((rows.size + kValues - 1) / kValues, [&](int64_t i, int) {
    for (int64_t k = i * kValues; k < std::min(rows.size, (i + 1) * kValues); ++k) {
      halves[k] = f16 ? FloatToF16(rows[k]) : FloatToBF16(rows[k]);
    }
  });
}

}  // namespace

void MergedRow(const MergedWeight& merged, int64_t row, float* out) {
  const int64_t cols = merged.w.cols;
  DecodeRow(merged.w, row, 0, cols, out);
  if (merged.a.data == nullptr) return;
  for (int64_t begin = 0; begin < cols; begin += kColumnsAtOnce) {
    const int64_t count = std::min(kColumnsAtOnce, cols - begin);
    float delta[kColumnsAtOnce] = {};
    for (int64_t r = 0; r < merged.a.rows; ++r) {
      const float factor = merged.b(row, r);
      const float* a = merged.a.row(r) + begin;
      for (int64_t i = 0; i < count; ++i) delta[i] += factor * a[i];
    }
    for (int64_t i = 0; i < count; ++i) out[begin + i] += merged.scale * delta[i];
  }
}

bool CanQuantizeMerged(Format format) {
  return format == Format::kF16 || format == Format::kBF16 || IsBlockFormat(format) || IsScaled(format);
}

int64_t QuantizeMergedScratchBytes(int64_t cols) {
  ScratchCarver carver;
  carver.Take<float>(kRowsAtOnce * cols);
  return carver.used();
}

void QuantizeMerged(const MergedWeight& merged, const WeightView& out, Scratch scratch) {
  CHECK(CanQuantizeMerged(out.format));
  CHECK(out.rows == merged.w.rows && out.cols == merged.w.cols);
  ScratchCarver carver(scratch);
  float* tile = carver.Take<float>(kRowsAtOnce * out.cols);
  for (int64_t first = 0; first < out.rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, out.rows - first);
    ParallelFor(count, [&](int64_t r, int) { MergedRow(merged, first + r, tile + r * out.cols); });
    Quantize(out, first, ConstVector(tile, count * out.cols));
  }
}

}  // namespace thimble
