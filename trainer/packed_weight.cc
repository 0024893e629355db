#include "trainer/packed_weight.h"

#include <cstring>

#include "ops/scratch_buffer.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

constexpr int64_t kParts = 6;
constexpr int64_t kMapEntries = 256;
constexpr int64_t kNestedBlock = 256;

struct Layout {
  int64_t codes = 0;  // bytes of each part
  int64_t absmax = 0;
  int64_t absmax_codes = 0;
  int64_t map = 0;
  int64_t nested = 0;
  int64_t offsets = 0;
  int64_t columns = 0;

  int64_t Sum() const { return codes + absmax + absmax_codes + map + nested + offsets + columns; }
};

Layout LayoutOf(const WeightView& w) {
  const int64_t values = w.rows * w.cols;
  Layout layout;
  if (w.format == Format::kTernary) {
    layout.absmax = sizeof(float);
    layout.codes = TernaryBytes(w.rows, w.cols) - layout.absmax;
    return layout;
  }
  if (!HasScales(w.format)) {
    layout.codes = StoredBytes(w.format, values);
    return layout;
  }
  const int64_t blocks = (values + w.block_size - 1) / w.block_size;
  layout.codes = HasNibbles(w.format) ? (values + 1) / 2 : values;
  layout.offsets = w.offsets != nullptr ? blocks * 4 : 0;
  layout.columns = w.column_blocks != nullptr ? w.cols * 4 : 0;
  if (w.absmax != nullptr) {
    layout.absmax = blocks * 4;
  } else {
    layout.absmax_codes = blocks;
    layout.map = kMapEntries * 4;
    layout.nested = (blocks + kNestedBlock - 1) / kNestedBlock * 4;
  }
  return layout;
}

}  // namespace

int64_t PartBytes(const WeightView& weight) { return LayoutOf(weight).Sum(); }

int64_t PackedBytes(const WeightView& weight) {
  const Layout l = LayoutOf(weight);
  return Aligned(l.codes) + Aligned(l.absmax) + Aligned(l.absmax_codes) + Aligned(l.map) + Aligned(l.nested) +
         Aligned(l.offsets) + Aligned(l.columns);
}

int64_t PackedBytesBound(int64_t bytes) { return Aligned(bytes) + kParts * kAlignment; }

void PackWeight(const WeightView& weight, char* out) {
  const Layout l = LayoutOf(weight);
  const auto append = [&out](const void* from, int64_t bytes) {
    if (bytes == 0) return;
    std::memcpy(out, from, static_cast<size_t>(bytes));
    std::memset(out + bytes, 0, static_cast<size_t>(Aligned(bytes) - bytes));
    out += Aligned(bytes);
  };
  append(weight.data, l.codes);
  append(weight.absmax, l.absmax);
  append(weight.absmax_codes, l.absmax_codes);
  append(weight.absmax_map, l.map);
  append(weight.nested_absmax, l.nested);
  append(weight.offsets, l.offsets);
  append(weight.column_blocks, l.columns);
}

WeightView UnpackedView(const WeightView& like, const char* packed) {
  const Layout l = LayoutOf(like);
  WeightView view = like;
  const auto next = [&packed](int64_t bytes) {
    const char* part = packed;
    packed += Aligned(bytes);
    return bytes == 0 ? nullptr : part;
  };
  view.data = next(l.codes);
  view.absmax = reinterpret_cast<const float*>(next(l.absmax));
  view.absmax_codes = reinterpret_cast<const uint8_t*>(next(l.absmax_codes));
  view.absmax_map = reinterpret_cast<const float*>(next(l.map));
  view.nested_absmax = reinterpret_cast<const float*>(next(l.nested));
  view.offsets = reinterpret_cast<const float*>(next(l.offsets));
  view.column_blocks = reinterpret_cast<const int32_t*>(next(l.columns));
  return view;
}

}  // namespace thimble
