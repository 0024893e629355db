// Rows of matrices in memory as bf16, and pieces of panels made of them. For the sources of AMX kernels alone.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "ops/amx_panel.h"
#include "ops/format.h"

namespace thimble {
namespace {

// What every processor with AMX has.
#define THIMBLE_AMX_TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,f16c")))
#define THIMBLE_AMX_INLINE THIMBLE_AMX_TARGET __attribute__((always_inline)) inline

constexpr int64_t kTile = 512;  // bf16 values
constexpr int64_t kLanes = 16;  // of a tile
constexpr int64_t kTileFloats = 256;

// Matrices in memory, 32 columns of a row at a time as bf16: Row(r, c, count) has columns [c, c + count), count <= 32,
// and 0 behind them. What stands `ahead` elements further on, where the next panel begins, is fetched meanwhile: rows
// are too many streams for the processor to foresee.
struct F32Rows {
  const float* data;
  int64_t stride, ahead;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const float* at = data + r * stride + c;
    _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T1);
    _mm_prefetch(reinterpret_cast<const char*>(at + ahead + 16), _MM_HINT_T1);
    if (count >= 32) return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
    const uint32_t mask = (uint32_t{1} << count) - 1;
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), at + 16),
                                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), at));
  }
};

struct BF16Rows {
  const uint16_t* data;
  int64_t stride, ahead;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const uint16_t* at = data + r * stride + c;
    _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T1);
    if (count >= 32) return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, at);
  }
};

struct F16Rows {
  const uint16_t* data;
  int64_t stride, ahead;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const __m512i halves = BF16Rows{data, stride, ahead}.Row(r, c, count);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)),
                                        _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
  }
};

// Rows whose 32 columns stand in one block, which is rounded as a table of its 16 values. Blocks are of a power of two,
// so that none has to be divided by; all that bitsandbytes has.
struct FourBitRows {
  FourBitRows(const WeightView& w, int64_t ahead)
      : codes(static_cast<const uint8_t*>(w.data)),
        absmax(w.absmax),
        absmax_codes(w.absmax_codes),
        absmax_map(w.absmax_map),
        nested_absmax(w.nested_absmax),
        codebook(Codebook(w.format)),
        nested_offset(w.nested_offset),
        block_shift(__builtin_ctz(static_cast<unsigned>(w.block_size))),
        cols(w.cols),
        ahead(ahead) {}
  static bool Fit(const WeightView& w) {
    return w.offsets == nullptr && w.column_blocks == nullptr && w.block_size >= 32 &&
           (w.block_size & (w.block_size - 1)) == 0 && w.cols % 32 == 0;
  }

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t) const {
    const int64_t element = r * cols + c, block = element >> block_shift;
    __m512 scale;
    if (absmax != nullptr) {
      scale = _mm512_set1_ps(absmax[block]);
    } else {
      const float product = absmax_map[absmax_codes[block]] * nested_absmax[block >> 8];
      scale = _mm512_set1_ps(product + nested_offset);
    }
    const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(codebook), scale);
    const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(values, values);
    const uint8_t* at = codes + (element >> 1);
    _mm_prefetch(reinterpret_cast<const char*>(at + ahead), _MM_HINT_T1);
    // Lookups read five bits of a 16-bit lane, and the table holds its values twice: bit 4 may be anything. The high
    // nibble of a byte comes first.
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
    return _mm512_permutexvar_epi16(index, table);
  }

  const uint8_t* codes;
  const float* absmax;
  const uint8_t* absmax_codes;
  const float *absmax_map, *nested_absmax, *codebook;
  float nested_offset;
  int block_shift;
  int64_t cols;
  int64_t ahead;  // bytes
};

// Any weight, by way of floats.
struct DecodedRows {
  const WeightView& w;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    alignas(64) float values[32] = {};
    DecodeRow(w, r, c, count, values);
    return F32Rows{values, 32, 0}.Row(0, 0, 32);
  }
};

// Quarter q of turning 16 rows of 16 pairs to 16 pairs of 16 rows: pairs 4 q to 4 q + 3. Those of rows 0, 4, 8 and 12,
// of 1, 5, 9 and 13, ... are gathered while they are loaded, so that half of the shuffles are left.
THIMBLE_AMX_INLINE void TransposeQuarter(const uint16_t* rows, int64_t q, uint16_t* out) {
  __m512i in[4];
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4; ++i) {
    const auto* at = reinterpret_cast<const __m128i*>(rows + 32 * i + 8 * q);
    in[i] = _mm512_castsi128_si512(_mm_load_si128(at));
    in[i] = _mm512_inserti32x4(in[i], _mm_load_si128(at + 16), 1);
    in[i] = _mm512_inserti32x4(in[i], _mm_load_si128(at + 32), 2);
    in[i] = _mm512_inserti32x4(in[i], _mm_load_si128(at + 48), 3);
  }
  const __m512i t0 = _mm512_unpacklo_epi32(in[0], in[1]), t1 = _mm512_unpacklo_epi32(in[2], in[3]);
  const __m512i t2 = _mm512_unpackhi_epi32(in[0], in[1]), t3 = _mm512_unpackhi_epi32(in[2], in[3]);
  uint16_t* to = out + 128 * q;
  _mm512_store_si512(to, _mm512_unpacklo_epi64(t0, t1));
  _mm512_store_si512(to + 32, _mm512_unpackhi_epi64(t0, t1));
  _mm512_store_si512(to + 64, _mm512_unpacklo_epi64(t2, t3));
  _mm512_store_si512(to + 96, _mm512_unpackhi_epi64(t2, t3));
}

THIMBLE_AMX_INLINE void TransposePairs(const uint16_t* rows, uint16_t* out) {
  for (int64_t q = 0; q < 4; ++q) TransposeQuarter(rows, q, out);
}

// The part of an operand that is packed: rows and columns of the matrix in memory from (row, col) on.
struct Part {
  int64_t row, rows;  // rows of the matrix that are there, from `row` on; beyond them 0
  int64_t col, cols;

  // 32 columns of row r.
  template <class Rows>
  THIMBLE_AMX_INLINE __m512i Row(const Rows& source, int64_t r) const {
    if (r >= rows || cols <= 0) return _mm512_setzero_si512();
    return source.Row(row + r, col, std::min<int64_t>(cols, 32));
  }
  Part Down(int64_t count) const { return {row + count, rows - count, col, cols}; }
  Part Across(int64_t count) const { return {row, rows, col + count, cols - count}; }
};

// Rows [begin, end) of 16, 32 columns each, as they stand: a left tile whose lanes are rows.
template <class Rows>
THIMBLE_AMX_INLINE void CopyRows(const Rows& source, const Part& part, int64_t begin, int64_t end, uint16_t* tile) {
  for (int64_t r = begin; r < end; ++r) _mm512_store_si512(tile + 32 * r, part.Row(source, r));
}

// Rows 2 pair and 2 pair + 1, side by side: columns 0 to 15 to a row of `first`, the others to one of `second`.
template <class Rows>
THIMBLE_AMX_INLINE void PairRows(const Rows& source, const Part& part, int64_t pair, uint16_t* first,
                                 uint16_t* second) {
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i even = part.Row(source, 2 * pair), odd = part.Row(source, 2 * pair + 1);
  _mm512_store_si512(first + 32 * pair, _mm512_permutex2var_epi16(even, low, odd));
  _mm512_store_si512(second + 32 * pair, _mm512_permutex2var_epi16(even, high, odd));
}

template <class Rows>
THIMBLE_AMX_TARGET void PackLeftSteps(const Rows& source, bool inner_first, Part part, int64_t steps, uint16_t* panel) {
  alignas(64) uint16_t pairs[2 * kTile];
  for (int64_t s = 0; s < steps; ++s, panel += 2 * kTile) {
    if (inner_first) {
      for (int64_t pair = 0; pair < kLanes; ++pair) PairRows(source, part, pair, pairs, pairs + kTile);
      TransposePairs(pairs, panel);
      TransposePairs(pairs + kTile, panel + kTile);
      part = part.Down(kAmxStep);
    } else {
      CopyRows(source, part, 0, kLanes, panel);
      CopyRows(source, part.Down(kLanes), 0, kLanes, panel + kTile);
      part = part.Across(kAmxStep);
    }
  }
}

// Pieces of a right panel, 16 a step. Where its lanes are rows in memory, eight make a tile: four copy four rows each,
// four turn a quarter each.
template <class Rows>
struct RightPieces {
  Rows source;
  Part part;
  bool inner_first;
  uint16_t *rows, *panel;
  int64_t next, end;

  THIMBLE_AMX_INLINE void Pack() {
    const int64_t step = next / 16, i = next % 16;
    ++next;
    uint16_t* tiles = panel + step * 2 * kTile;
    if (inner_first) return PairRows(source, part.Down(step * kAmxStep), i, tiles, tiles + kTile);
    if (i % 8 >= 4) return TransposeQuarter(rows, i % 4, tiles + i / 8 * kTile);
    const int64_t first = i / 8 * kLanes;
    CopyRows(source, part.Across(step * kAmxStep).Down(first), 4 * (i % 4), 4 * (i % 4) + 4, rows);
  }
};

inline Part PartOf(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth) {
  if (operand.inner_first) return {k, depth, lane, lanes - lane};
  return {lane, lanes - lane, k, depth};
}

// From an element to the one in the same place of the next panel.
inline int64_t Ahead(const MatMulOperand& operand, int64_t stride) {
  return kAmxPanel * (operand.inner_first ? 1 : stride);
}

}  // namespace
}  // namespace thimble
