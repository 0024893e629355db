// Packing the operands of a matrix product into panels (ops/matmul_kernel.h), from floats and from 4-bit codes.
// Included inside a Highway foreach_target source.
#if defined(THIMBLE_OPS_MATMUL_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_MATMUL_PACK_INL_H_
#undef THIMBLE_OPS_MATMUL_PACK_INL_H_
#else
#define THIMBLE_OPS_MATMUL_PACK_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <utility>

#include "hwy/highway.h"
#include "ops/format.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, 16>;
using Vec = hn::Vec<F32>;
constexpr int kLanes = hn::MaxLanes(F32());
// Accumulators plus one row of the right panel plus one broadcast fit the register file: 32 registers of 16 lanes, 16
// of fewer. At least 10 accumulators hide the latency of FMA; 24 in 8 rows need fewer loads than 28 in 14.
constexpr int kRows = kLanes == 16 ? 8 : kLanes == 8 ? 6 : 4;
constexpr int kVectors = kLanes == 8 ? 2 : 3;
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
void PackRowPointers(const float* const* rows, int64_t, int64_t depth, float* panel) {
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
template <class D, class V = hn::Vec<D> >
HWY_INLINE void Transpose4(D d, const V* in, V* out) {
  const hn::Repartition<double, D> dd;
  const auto t0 = hn::BitCast(dd, hn::InterleaveLower(d, in[0], in[1]));
  const auto t1 = hn::BitCast(dd, hn::InterleaveLower(d, in[2], in[3]));
  const auto t2 = hn::BitCast(dd, hn::InterleaveUpper(d, in[0], in[1]));
  const auto t3 = hn::BitCast(dd, hn::InterleaveUpper(d, in[2], in[3]));
  out[0] = hn::BitCast(d, hn::InterleaveLower(dd, t0, t1));
  out[1] = hn::BitCast(d, hn::InterleaveUpper(dd, t0, t1));
  out[2] = hn::BitCast(d, hn::InterleaveLower(dd, t2, t3));
  out[3] = hn::BitCast(d, hn::InterleaveUpper(dd, t2, t3));
}

// 16 bytes of rows 0, 4, ... below the lanes of D.
template <class D, typename T>
HWY_INLINE hn::Vec<D> LoadQuarters(D d, const T* const* rows, int64_t at) {
  const hn::FixedTag<float, 4> d4;
  const auto quarter = [&](int row) HWY_ATTR { return hn::LoadU(d4, reinterpret_cast<const float*>(rows[row] + at)); };
  if constexpr (hn::MaxLanes(D()) == 16) {
    const hn::Half<D> d8;
    return hn::Combine(d, hn::Combine(d8, quarter(12), quarter(8)), hn::Combine(d8, quarter(4), quarter(0)));
  } else if constexpr (hn::MaxLanes(D()) == 8) {
    return hn::Combine(d, quarter(4), quarter(0));
  } else {
    return quarter(0);
  }
}

// Where a panel is narrower than a vector, what a store writes behind the panel's width, the next one overwrites. What
// stands `ahead` floats further on, in rows of the next
// panel, is fetched meanwhile: rows are too many streams for the processor to foresee.
template <int kWidth, bool kRound>
void PackRowPointers(const float* const* rows, int64_t ahead, int64_t depth, float* panel) {
  constexpr int kStep = std::min(kWidth == 8 ? 8 : 16, kLanes);
  // Inner indices whose last vector would end behind the panel.
  constexpr int kPlain = kWidth % kStep == 0 ? 0 : 1;
  const hn::CappedTag<float, kStep> d;
  int64_t k = 0;
  // One group of rows after the other: with a stride of a power of two their cache lines share a set.
  for (int group = 0; group < kWidth; group += kStep) {
    const float* const* p = rows + group;
    for (k = 0; k + 4 + kPlain <= depth; k += 4) {
      // A cache line of each row every 16 inner indices, a quarter of the rows at a time.
      for (int r = 0; r < kStep / 4 && ahead != 0; ++r) {
        __builtin_prefetch(p[k / 4 % 4 * (kStep / 4) + r] + ahead + k, 0, 2);  // into the second-level cache
      }
      const hn::Vec<decltype(d)> in[4] = {LoadQuarters(d, p, k), LoadQuarters(d, p + 1, k), LoadQuarters(d, p + 2, k),
                                          LoadQuarters(d, p + 3, k)};
      hn::Vec<decltype(d)> out[4];
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
    const int64_t ahead = first + 2 * kWidth <= count ? kWidth * stride : 0;
    round ? PackRowPointers<kWidth, true>(rows, ahead, depth, panel)
          : PackRowPointers<kWidth, false>(rows, ahead, depth, panel);
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
// The codes `ahead` bytes further on are fetched meanwhile.
template <bool kRound>
void Pack4BitRows(const WeightView& w, const int64_t* first, int64_t ahead, int64_t depth, float* panel) {
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
      // A cache line of each row every 128 columns, a quarter of the rows at a time.
      for (int r = 0; r < kLanes / 4 && ahead != 0; ++r) {
        __builtin_prefetch(codes[i / 32 % 4 * (kLanes / 4) + r] + ahead + i / 2, 0, 2);
      }
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
    const int64_t ahead = row + 2 * kCols <= w.rows ? kCols * w.cols / 2 : 0;
    round ? Pack4BitRows<true>(w, first, ahead, depth, panel + group)
          : Pack4BitRows<false>(w, first, ahead, depth, panel + group);
  }
}
#else
constexpr bool kHasPack4Bit = false;
#endif

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_MATMUL_PACK_INL_H_
