// Register tiles (6x16 with AVX2, 14x32 with AVX-512) and packing, compiled once a CPU level.
#include "ops/matmul_kernel.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/matmul_kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;
constexpr int kLanes = hn::MaxLanes(F32());
// Accumulators plus one row of the right panel plus one broadcast fill the register file: 32 registers of 16 lanes,
// 16 of fewer. At least 10 accumulators hide the latency of FMA.
constexpr int kRows = kLanes == 16 ? 14 : kLanes == 8 ? 6 : 4;
constexpr int kVectors = kLanes >= 8 ? 2 : 3;
constexpr int kCols = kVectors * kLanes;

template <class D>
HWY_INLINE hn::Vec<D> RoundBF16(D d, hn::Vec<D> v) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  const auto rounded = hn::And(hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFF))), hn::Set(du, 0xFFFF0000u));
  // A NaN keeps its upper half; the quiet bit keeps it a NaN.
  const auto nan = hn::And(hn::Or(bits, hn::Set(du, 0x400000u)), hn::Set(du, 0xFFFF0000u));
  return hn::IfThenElse(hn::Eq(v, v), hn::BitCast(d, rounded), hn::BitCast(d, nan));
}

template <bool kRound, class D>
HWY_INLINE hn::Vec<D> MaybeRound(D d, hn::Vec<D> v) {
  if constexpr (kRound) return RoundBF16(d, v);
  return v;
}

// Named array elements with constant indices only, so that every accumulator is a register.
template <int kV, size_t... kJ>
HWY_INLINE void MultiplyRow(F32 d, float left, const Vec* right, Vec* sums, std::index_sequence<kJ...>) {
  const Vec broadcast = hn::Set(d, left);
  ((sums[kJ] = hn::MulAdd(broadcast, right[kJ], sums[kJ])), ...);
}

template <int kV, size_t... kI>
HWY_INLINE void MultiplyStep(F32 d, const float* left, const Vec* right, Vec* sums, std::index_sequence<kI...>) {
  (MultiplyRow<kV>(d, left[kI], right, sums + kI * kV, std::make_index_sequence<kV>()), ...);
}

template <size_t... kJ>
HWY_INLINE void LoadRight(F32 d, const float* right, int64_t second, Vec* out, std::index_sequence<kJ...>) {
  ((out[kJ] = hn::LoadU(d, right + (kJ < kVectors ? kJ * kLanes : second + (kJ - kVectors) * kLanes))), ...);
}

template <size_t... kI>
HWY_INLINE void SetZero(F32 d, Vec* sums, std::index_sequence<kI...>) {
  ((sums[kI] = hn::Zero(d)), ...);
}

HWY_INLINE Vec Scaled(F32 d, Vec sum, Vec scale, bool add, const float* y) {
  return add ? hn::MulAdd(scale, sum, hn::LoadU(d, y)) : hn::Mul(scale, sum);
}

// One row of a tile with all its columns.
template <size_t... kJ>
HWY_INLINE void StoreRow(F32 d, const Vec* sums, Vec scale, bool add, float* y, std::index_sequence<kJ...>) {
  (hn::StoreU(Scaled(d, sums[kJ], scale, add, y + kJ * kLanes), d, y + kJ * kLanes), ...);
}

template <int kV, size_t... kI>
HWY_INLINE void StoreRows(F32 d, const Vec* sums, const MatMulTile& tile, std::index_sequence<kI...>) {
  const Vec scale = hn::Set(d, tile.scale);
  constexpr std::make_index_sequence<kV> kAll;
  if (tile.count == kV * kLanes) {
    (StoreRow(d, sums + kI * kV, scale, tile.add, tile.y + kI * tile.stride, kAll), ...);
    return;
  }
  // An edge tile goes through a full row, so that its elements take the same operations.
  alignas(64) float row[kV * kLanes] = {};
  const size_t bytes = tile.count * sizeof(float);
  (..., (std::memcpy(row, tile.y + kI * tile.stride, bytes), StoreRow(d, sums + kI * kV, scale, tile.add, row, kAll),
         std::memcpy(tile.y + kI * tile.stride, row, bytes)));
}

// kR rows by kV vectors, the vectors behind kVectors being those of the second panel.
template <int kR, int kV>
HWY_INLINE void MultiplyPanels(int64_t depth, const float* HWY_RESTRICT left, const float* HWY_RESTRICT right,
                               int64_t second, const MatMulTile& tile) {
  const F32 d;
  constexpr std::make_index_sequence<kR> kAllRows;
  Vec sums[kR * kV];
  SetZero(d, sums, std::make_index_sequence<kR * kV>());
#pragma GCC unroll 4
  for (int64_t k = 0; k < depth; ++k) {
    Vec row[kV];
    LoadRight(d, right, second, row, std::make_index_sequence<kV>());
    MultiplyStep<kV>(d, left, row, sums, kAllRows);
    left += kRows;
    right += kCols;
  }
  StoreRows<kV>(d, sums, tile, kAllRows);
}

template <int kR>
void MultiplyTile(int64_t depth, const float* left, const float* right, const MatMulTile& tile) {
  MultiplyPanels<kR, kVectors>(depth, left, right, 0, tile);
}

template <int kR>
void MultiplyWideTile(int64_t depth, const float* left, const float* right, int64_t second, const MatMulTile& tile) {
  MultiplyPanels<kR, 2 * kVectors>(depth, left, right, second, tile);
}

template <int kWidth, bool kRound>
void PackRowsPlain(const float* const* rows, int64_t begin, int64_t end, float* panel) {
  for (int64_t k = begin; k < end; ++k) {
    for (int r = 0; r < kWidth; ++r) {
      panel[k * kWidth + r] = kRound ? BF16ToFloat(FloatToBF16(rows[r][k])) : rows[r][k];
    }
  }
}

template <int kWidth, bool kRound>
void PackColsPlain(const float* source, int64_t stride, int64_t count, int64_t depth, float* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    for (int64_t c = 0; c < kWidth; ++c) {
      const float value = source[k * stride + std::min(c, count - 1)];
      panel[k * kWidth + c] = kRound ? BF16ToFloat(FloatToBF16(value)) : value;
    }
  }
}

#if HWY_TARGET == HWY_SCALAR
template <int kWidth, bool kRound>
void PackRowPointers(const float* const* rows, int64_t depth, float* panel) {
  PackRowsPlain<kWidth, kRound>(rows, 0, depth, panel);
}

template <int kWidth, bool kRound>
void PackFullCols(const float* source, int64_t stride, int64_t panels, int64_t depth, float* panel,
                  int64_t panel_stride) {
  for (int64_t i = 0; i < panels; ++i) {
    PackColsPlain<kWidth, kRound>(source + i * kWidth, stride, kWidth, depth, panel + i * panel_stride);
  }
}
#else
// In each 128-bit block of in[i] stands a quarter of a row: of rows i, i + 4, ... Afterwards out[k] holds quarter
// element k of all rows, in order.
HWY_INLINE void Transpose4(F32 d, const Vec* in, Vec* out) {
  const hn::Repartition<double, F32> dd;
  const auto t0 = hn::BitCast(dd, hn::InterleaveLower(d, in[0], in[1]));
  const auto t1 = hn::BitCast(dd, hn::InterleaveLower(d, in[2], in[3]));
  const auto t2 = hn::BitCast(dd, hn::InterleaveUpper(d, in[0], in[1]));
  const auto t3 = hn::BitCast(dd, hn::InterleaveUpper(d, in[2], in[3]));
  out[0] = hn::BitCast(d, hn::InterleaveLower(dd, t0, t1));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(dd, t0, t1));
  out[2] = hn::BitCast(d, hn::InterleaveLower(dd, t2, t3));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(dd, t2, t3));
}

// 16 bytes of rows 0, 4, ... below kLanes.
template <typename T>
HWY_INLINE Vec LoadQuarters(F32 d, const T* const* rows, int64_t at) {
  const hn::FixedTag<float, 4> d4;
#define THIMBLE_QUARTER(row) hn::LoadU(d4, reinterpret_cast<const float*>(rows[row] + at))
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
  const hn::FixedTag<float, 8> d8;
  return hn::Combine(d, hn::Combine(d8, THIMBLE_QUARTER(12), THIMBLE_QUARTER(8)),
                     hn::Combine(d8, THIMBLE_QUARTER(4), THIMBLE_QUARTER(0)));
#elif HWY_TARGET == HWY_AVX2
  return hn::Combine(d, THIMBLE_QUARTER(4), THIMBLE_QUARTER(0));
#else
  (void)d;
  return THIMBLE_QUARTER(0);
#endif
#undef THIMBLE_QUARTER
}

// A left panel is narrower than a vector: what a store writes behind the panel's width, the next one overwrites; the
// memory goes on for kLanes floats behind the last panel.
template <int kWidth, bool kRound>
void PackRowPointers(const float* const* rows, int64_t depth, float* panel) {
  const F32 d;
  int64_t k = 0;
  // One group of rows after the other: with a stride of a power of two their cache lines share a set.
  for (int group = 0; group < kWidth; group += kLanes) {
    const float* const* p = rows + group;
    for (k = 0; k + 4 <= depth; k += 4) {
      const Vec in[4] = {LoadQuarters(d, p, k), LoadQuarters(d, p + 1, k), LoadQuarters(d, p + 2, k),
                         LoadQuarters(d, p + 3, k)};
      Vec out[4];
      Transpose4(d, in, out);
      for (int i = 0; i < 4; ++i) {
        hn::StoreU(MaybeRound<kRound>(d, out[i]), d, panel + (k + i) * kWidth + group);
      }
    }
  }
  PackRowsPlain<kWidth, kRound>(rows, k, depth, panel);
}

// One inner index of one panel, in vectors or their halves; the last one is moved back onto the panel's end, so that
// nothing behind the source is read.
template <int kWidth, bool kRound>
HWY_INLINE void PackFullRow(const float* source, float* panel) {
  constexpr int kStep = kWidth % kLanes == 0 ? kLanes : kLanes / 2;
  const hn::CappedTag<float, kStep> d;
  for (int c = 0; c < kWidth; c += kStep) {
    const int at = std::min(c, kWidth - kStep);
    hn::StoreU(MaybeRound<kRound>(d, hn::LoadU(d, source + at)), d, panel + at);
  }
}

// Several panels at a time, so that cache lines are read whole.
template <int kWidth, bool kRound>
void PackFullCols(const float* source, int64_t stride, int64_t panels, int64_t depth, float* panel,
                  int64_t panel_stride) {
  constexpr int64_t kGroup = (63 + kWidth) / kWidth;
  for (int64_t group = 0; group < panels; group += kGroup) {
    const int64_t count = std::min(kGroup, panels - group);
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t i = 0; i < count; ++i) {
        PackFullRow<kWidth, kRound>(source + k * stride + (group + i) * kWidth,
                                    panel + (group + i) * panel_stride + k * kWidth);
      }
    }
  }
}
#endif

template <int kWidth>
void PackRows(const float* source, int64_t stride, int64_t count, int64_t depth, bool round, float* panel,
              int64_t panel_stride) {
  for (int64_t first = 0; first < count; first += kWidth, panel += panel_stride) {
    const float* rows[kWidth + kLanes];
    for (int64_t r = 0; r < kWidth + kLanes; ++r) rows[r] = source + std::min(first + r, count - 1) * stride;
    round ? PackRowPointers<kWidth, true>(rows, depth, panel) : PackRowPointers<kWidth, false>(rows, depth, panel);
  }
}

template <int kWidth, bool kRound>
void PackColsOf(const float* source, int64_t stride, int64_t count, int64_t depth, float* panel, int64_t panel_stride) {
  const int64_t full = count / kWidth;
  PackFullCols<kWidth, kRound>(source, stride, full, depth, panel, panel_stride);
  if (count > full * kWidth) {
    PackColsPlain<kWidth, kRound>(source + full * kWidth, stride, count - full * kWidth, depth,
                                  panel + full * panel_stride);
  }
}

template <int kWidth>
void PackCols(const float* source, int64_t stride, int64_t count, int64_t depth, bool round, float* panel,
              int64_t panel_stride) {
  round ? PackColsOf<kWidth, true>(source, stride, count, depth, panel, panel_stride)
        : PackColsOf<kWidth, false>(source, stride, count, depth, panel, panel_stride);
}

#if HWY_TARGET != HWY_SCALAR && HWY_ARCH_X86
constexpr bool kHasPack4Bit = kLanes >= 8;

// The 16 values of a code book and the indices that select among them.
struct CodeBook {
  Vec low, high;  // with 16 lanes `low` holds all
};

HWY_INLINE CodeBook LoadCodeBook(F32 d, const float* values) {
  if constexpr (kLanes == 16) return {hn::LoadU(d, values), hn::Zero(d)};
  return {hn::LoadU(d, values), hn::LoadU(d, values + std::min(kLanes, 8))};
}

// The values of the codes in bits kBit .. kBit + 3 of each word.
template <int kBit, class U>
HWY_INLINE Vec Lookup(F32 d, const CodeBook& book, U words) {
  const hn::RebindToUnsigned<F32> du;
  const hn::RebindToSigned<F32> di;
  auto index = hn::ShiftRight<kBit>(words);
  // The lookup reads only as many bits as it has lanes; debug builds check that there are no others.
  if (HWY_IS_DEBUG_BUILD) index = hn::And(index, hn::Set(du, kLanes - 1));
  const auto lanes = hn::IndicesFromVec(d, hn::BitCast(di, index));
  const Vec low = hn::TableLookupLanes(book.low, lanes);
  if constexpr (kLanes == 16) return low;
  // Bit 3 of the code moved to the sign.
  const Vec sign = hn::BitCast(d, hn::ShiftLeft<28 - kBit>(words));
  return hn::IfNegativeThenElse(sign, hn::TableLookupLanes(book.high, lanes), low);
}

template <bool kRound, class U, size_t... kI>
HWY_INLINE void DecodeWords(F32 d, const CodeBook& book, Vec absmax, U words, float* out, std::index_sequence<kI...>) {
  // Element 2 i of a word is the high nibble of byte i.
  (hn::StoreU(MaybeRound<kRound>(d, hn::Mul(Lookup<4 * (kI ^ 1)>(d, book, words), absmax)), d, out + kI * kCols), ...);
}

// kLanes rows, one a lane: codes of 32 columns are four words a row, and a word's k-th nibble is column k of all rows.
template <bool kRound>
void Pack4BitRows(const WeightView& w, const int64_t* first, int64_t depth, float* panel) {
  const F32 d;
  const hn::RebindToUnsigned<F32> du;
  const CodeBook book = LoadCodeBook(d, Codebook(w.format));
  const uint8_t* codes[kLanes + 4];
  for (int r = 0; r < kLanes; ++r) codes[r] = static_cast<const uint8_t*>(w.data) + first[r] / 2;
  const int64_t part = std::min<int64_t>(w.block_size, depth);
  for (int64_t k = 0; k < depth; k += part) {
    alignas(64) float scales[kLanes];
    for (int r = 0; r < kLanes; ++r) scales[r] = BlockAbsmax(w, (first[r] + k) / w.block_size);
    const Vec absmax = hn::Load(d, scales);
    for (int64_t i = k; i < std::min(k + part, depth); i += 32) {
      const Vec in[4] = {LoadQuarters(d, codes, i / 2), LoadQuarters(d, codes + 1, i / 2),
                         LoadQuarters(d, codes + 2, i / 2), LoadQuarters(d, codes + 3, i / 2)};
      Vec words[4];
      Transpose4(d, in, words);
      for (int q = 0; q < 4; ++q) {
        DecodeWords<kRound>(d, book, absmax, hn::BitCast(du, words[q]), panel + (i + 8 * q) * kCols,
                            std::make_index_sequence<8>());
      }
    }
  }
}

void Pack4Bit(const WeightView& w, int64_t row, int64_t col, int64_t depth, bool round, float* panel) {
  const int64_t count = std::min<int64_t>(kCols, w.rows - row);
  for (int group = 0; group < kCols; group += kLanes) {
    int64_t first[kLanes];
    for (int64_t r = 0; r < kLanes; ++r) first[r] = (row + std::min(group + r, count - 1)) * w.cols + col;
    round ? Pack4BitRows<true>(w, first, depth, panel + group) : Pack4BitRows<false>(w, first, depth, panel + group);
  }
}
#else
constexpr bool kHasPack4Bit = false;
#endif

template <size_t... kI>
MatMulKernels MakeKernels(std::index_sequence<kI...>) {
  MatMulKernels kernels = {};
  kernels.rows = kRows;
  kernels.cols = kCols;
  ((kernels.multiply[kI] = MultiplyTile<kI + 1>), ...);
  kernels.multiply_wide[0] = MultiplyWideTile<1>;
  kernels.multiply_wide[1] = MultiplyWideTile<2>;
  kernels.pack_left_rows = PackRows<kRows>;
  kernels.pack_right_rows = PackRows<kCols>;
  kernels.pack_left_cols = PackCols<kRows>;
  kernels.pack_right_cols = PackCols<kCols>;
#if HWY_TARGET != HWY_SCALAR && HWY_ARCH_X86
  if (kHasPack4Bit) kernels.pack_4bit = Pack4Bit;
#endif
  return kernels;
}

const MatMulKernels& Kernels() {
  static const MatMulKernels kernels = MakeKernels(std::make_index_sequence<kRows>());
  return kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {

HWY_EXPORT(Kernels);

bool CanPack4Bit(const WeightView& w, int64_t col, int64_t depth) {
  if (w.format != Format::kNF4 && w.format != Format::kFP4) return false;
  const int64_t block = w.block_size;
  return block % 32 == 0 && w.cols % block == 0 && depth % 32 == 0 &&
         (col % block == 0 || col % block + depth <= block);
}

const MatMulKernels& F32Kernels() { return HWY_DYNAMIC_DISPATCH(Kernels)(); }

}  // namespace thimble
#endif  // HWY_ONCE
