#include "ops/amx_panel.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "ops/check.h"

#if defined(__x86_64__)
// gcc's own header leaves the ignored lanes of its unmasked intrinsics uninitialised on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>

namespace thimble {
namespace {

// What every processor with AMX has. The compiler sees no AMX: tile instructions are assembly with a memory clobber, as
// its intrinsics do not say which memory they touch.
#define THIMBLE_AMX_TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16,f16c")))
#define THIMBLE_AMX_INLINE THIMBLE_AMX_TARGET __attribute__((always_inline)) inline

// Tiles: 0 to 3 sums, 4 and 5 left, 6 and 7 right.
#define THIMBLE_TILE_LOAD(tile, from, stride) \
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
// For what is read once while other tiles stay in the first-level cache.
#define THIMBLE_TILE_LOAD_ONCE(tile, from, stride) \
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm" #tile : : "r"(from), "r"(stride) : "memory")
#define THIMBLE_TILE_STORE(tile, to, stride) \
  __asm__ volatile("tilestored %%tmm" #tile ", (%0,%1,1)" : : "r"(to), "r"(stride) : "memory")
#define THIMBLE_TILE_ZERO(tile) __asm__ volatile("tilezero %%tmm" #tile : :)
#define THIMBLE_TILE_DOT(sums, left, right) \
  __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sums : :)

constexpr int64_t kTile = 512;  // bf16 values
constexpr int64_t kLanes = 16;  // of a tile
constexpr int64_t kTileFloats = 256;

// Matrices in memory, 32 columns of a row at a time as bf16: Row(r, c, count) has columns [c, c + count), count <= 32,
// and 0 behind them.
struct F32Rows {
  const float* data;
  int64_t stride;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const float* at = data + r * stride + c;
    if (count >= 32) return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at));
    const uint32_t mask = (uint32_t{1} << count) - 1;
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), at + 16),
                                        _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), at));
  }
};

struct BF16Rows {
  const uint16_t* data;
  int64_t stride;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const uint16_t* at = data + r * stride + c;
    if (count >= 32) return _mm512_loadu_si512(at);
    return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, at);
  }
};

struct F16Rows {
  const uint16_t* data;
  int64_t stride;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    const __m512i halves = BF16Rows{data, stride}.Row(r, c, count);
    return (__m512i)_mm512_cvtne2ps_pbh(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(halves, 1)),
                                        _mm512_cvtph_ps(_mm512_castsi512_si256(halves)));
  }
};

// Rows whose 32 columns stand in one block, which is rounded as a table of its 16 values.
struct FourBitRows {
  const WeightView& w;
  const float* codebook;
  int block_shift;  // of the block's size

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t) const {
    const int64_t element = r * w.cols + c, block = element >> block_shift;
    float absmax;
    if (w.absmax != nullptr) {
      absmax = w.absmax[block];
    } else {
      const float product = w.absmax_map[w.absmax_codes[block]] * w.nested_absmax[block / 256];
      absmax = product + w.nested_offset;
    }
    const __m512 values = _mm512_mul_ps(_mm512_loadu_ps(codebook), _mm512_set1_ps(absmax));
    const __m512i table = (__m512i)_mm512_cvtne2ps_pbh(values, values);
    const __m128i codes =
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(static_cast<const uint8_t*>(w.data) + element / 2));
    // Lookups read five bits of a 16-bit lane, and the table holds its values twice: bit 4 may be anything. The high
    // nibble of a byte comes first.
    const __m512i bytes = _mm512_cvtepu8_epi32(codes);
    const __m512i index = _mm512_or_si512(_mm512_srli_epi32(bytes, 4), _mm512_slli_epi32(bytes, 16));
    return _mm512_permutexvar_epi16(index, table);
  }
};

// Any weight, by way of floats.
struct DecodedRows {
  const WeightView& w;

  THIMBLE_AMX_INLINE __m512i Row(int64_t r, int64_t c, int64_t count) const {
    alignas(64) float values[32] = {};
    DecodeRow(w, r, c, count, values);
    return F32Rows{values, 32}.Row(0, 0, 32);
  }
};

// 16 rows of 16 pairs, `rows` between rows, to 16 pairs of 16 rows. Quarters of rows 0, 4, 8 and 12, of 1, 5, 9 and
// 13, ... are gathered while they are loaded, so that half of the shuffles are left.
THIMBLE_AMX_INLINE void TransposePairs(const uint16_t* rows, int64_t stride, uint16_t* out) {
  for (int64_t q = 0; q < 4; ++q) {
    const uint16_t* at = rows + 8 * q;
    __m512i in[4];
#pragma GCC unroll 4
    for (int64_t i = 0; i < 4; ++i) {
      const auto quarter = [&](int64_t row) __attribute__((always_inline)) {
        return _mm_load_si128(reinterpret_cast<const __m128i*>(at + row * stride));
      };
      in[i] = _mm512_castsi128_si512(quarter(i));
      in[i] = _mm512_inserti32x4(in[i], quarter(i + 4), 1);
      in[i] = _mm512_inserti32x4(in[i], quarter(i + 8), 2);
      in[i] = _mm512_inserti32x4(in[i], quarter(i + 12), 3);
    }
    const __m512i t0 = _mm512_unpacklo_epi32(in[0], in[1]), t1 = _mm512_unpacklo_epi32(in[2], in[3]);
    const __m512i t2 = _mm512_unpackhi_epi32(in[0], in[1]), t3 = _mm512_unpackhi_epi32(in[2], in[3]);
    uint16_t* to = out + 4 * q * 32;
    _mm512_store_si512(to, _mm512_unpacklo_epi64(t0, t1));
    _mm512_store_si512(to + 32, _mm512_unpackhi_epi64(t0, t1));
    _mm512_store_si512(to + 64, _mm512_unpacklo_epi64(t2, t3));
    _mm512_store_si512(to + 96, _mm512_unpackhi_epi64(t2, t3));
  }
}

// The part of an operand that is packed: rows and columns of the matrix in memory from (row, col) on.
struct Part {
  int64_t row, rows;  // rows of the matrix that are there, from `row` on; beyond them 0
  int64_t col, cols;
};

// 16 rows by 32 columns as they stand: a left tile whose lanes are rows.
template <class Rows>
THIMBLE_AMX_INLINE void CopyTile(const Rows& source, const Part& part, uint16_t* tile) {
  const int64_t count = std::clamp<int64_t>(part.cols, 0, 32);
  for (int64_t r = 0; r < kLanes; ++r) {
    _mm512_store_si512(tile + 32 * r,
                       r < part.rows && count > 0 ? source.Row(part.row + r, part.col, count) : _mm512_setzero_si512());
  }
}

// 32 rows by 32 columns to tiles of pairs of rows: columns 0 to 15 to `first`, the others to `second`.
template <class Rows>
THIMBLE_AMX_INLINE void PairTiles(const Rows& source, const Part& part, uint16_t* first, uint16_t* second) {
  const int64_t count = std::clamp<int64_t>(part.cols, 0, 32);
  alignas(64) static constexpr uint16_t kLow[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                    8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  for (int64_t r = 0; r < 32; r += 2) {
    __m512i even = _mm512_setzero_si512(), odd = even;
    if (r < part.rows && count > 0) even = source.Row(part.row + r, part.col, count);
    if (r + 1 < part.rows && count > 0) odd = source.Row(part.row + r + 1, part.col, count);
    _mm512_store_si512(first + 16 * r, _mm512_permutex2var_epi16(even, low, odd));
    _mm512_store_si512(second + 16 * r, _mm512_permutex2var_epi16(even, high, odd));
  }
}

template <class Rows>
THIMBLE_AMX_TARGET void PackLeftSteps(const Rows& source, bool inner_first, Part part, int64_t steps, uint16_t* panel) {
  alignas(64) uint16_t pairs[2 * kTile];
  for (int64_t s = 0; s < steps; ++s, panel += 2 * kTile) {
    if (inner_first) {
      PairTiles(source, part, pairs, pairs + kTile);
      TransposePairs(pairs, 32, panel);
      TransposePairs(pairs + kTile, 32, panel + kTile);
      part.row += kAmxStep, part.rows -= kAmxStep;
    } else {
      CopyTile(source, part, panel);
      CopyTile(source, {part.row + kLanes, part.rows - kLanes, part.col, part.cols}, panel + kTile);
      part.col += kAmxStep, part.cols -= kAmxStep;
    }
  }
}

template <class Rows>
THIMBLE_AMX_TARGET void PackRightSteps(const Rows& source, bool inner_first, Part part, int64_t steps,
                                       uint16_t* panel) {
  alignas(64) uint16_t rows[kTile];
  for (int64_t s = 0; s < steps; ++s, panel += 2 * kTile) {
    if (inner_first) {
      PairTiles(source, part, panel, panel + kTile);
      part.row += kAmxStep, part.rows -= kAmxStep;
    } else {
      CopyTile(source, part, rows);
      TransposePairs(rows, 32, panel);
      CopyTile(source, {part.row + kLanes, part.rows - kLanes, part.col, part.cols}, rows);
      TransposePairs(rows, 32, panel + kTile);
      part.col += kAmxStep, part.cols -= kAmxStep;
    }
  }
}

Part PartOf(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth) {
  if (operand.inner_first) return {k, depth, lane, lanes - lane};
  return {lane, lanes - lane, k, depth};
}

// Blocks of a power of two, so that none has to be divided by; all that bitsandbytes has.
bool HasFourBitRows(const WeightView& w) {
  return w.block_size >= 32 && (w.block_size & (w.block_size - 1)) == 0 && w.cols % 32 == 0;
}

}  // namespace

void PackAmxLeft(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, uint16_t* panel) {
  PackLeftSteps(F32Rows{operand.data, operand.stride}, operand.inner_first, PartOf(operand, lanes, lane, k, depth),
                AmxPaddedDepth(depth) / kAmxStep, panel);
}

void PackAmxRight(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, int64_t begin,
                  int64_t end, uint16_t* panel) {
  static_assert(kAmxUnitElements == kAmxPanel * kAmxStep);
  const int64_t first = begin * kAmxStep, steps = end - begin;
  const Part part = PartOf(operand, lanes, lane, k + first, depth - first);
  const bool inner_first = operand.inner_first;
  uint16_t* at = panel + first * kAmxPanel;
  if (operand.data != nullptr)
    return PackRightSteps(F32Rows{operand.data, operand.stride}, inner_first, part, steps, at);
  const WeightView& w = *operand.weight;
  const uint16_t* halves = static_cast<const uint16_t*>(w.data);
  switch (w.format) {
    case Format::kF32:
      return PackRightSteps(F32Rows{static_cast<const float*>(w.data), w.cols}, inner_first, part, steps, at);
    case Format::kBF16:
      return PackRightSteps(BF16Rows{halves, w.cols}, inner_first, part, steps, at);
    case Format::kF16:
      return PackRightSteps(F16Rows{halves, w.cols}, inner_first, part, steps, at);
    case Format::kNF4:
    case Format::kFP4:
      if (HasFourBitRows(w)) {
        const FourBitRows rows = {w, Codebook(w.format), __builtin_ctz(static_cast<unsigned>(w.block_size))};
        return PackRightSteps(rows, inner_first, part, steps, at);
      }
      return PackRightSteps(DecodedRows{w}, inner_first, part, steps, at);
  }
}

AmxScope::AmxScope() {
  struct alignas(64) Config {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
  };
  static constexpr Config kConfig;
  static_assert(sizeof(Config) == 64);
  __asm__ volatile("ldtilecfg %0" : : "m"(kConfig));
}

AmxScope::~AmxScope() { __asm__ volatile("tilerelease" : : : "memory"); }

namespace {

template <bool kTwoRows, bool kTwoCols>
void MultiplyTiles(const uint16_t* left, const uint16_t* right, int64_t steps, bool add, float* sums) {
  const int64_t stride = 64;
  THIMBLE_TILE_ZERO(0);
  THIMBLE_TILE_ZERO(1);
  THIMBLE_TILE_ZERO(2);
  THIMBLE_TILE_ZERO(3);
  if (add) {
    THIMBLE_TILE_LOAD(0, sums, stride);
    if (kTwoCols) THIMBLE_TILE_LOAD(1, sums + kTileFloats, stride);
    if (kTwoRows) THIMBLE_TILE_LOAD(2, sums + 2 * kTileFloats, stride);
    if (kTwoRows && kTwoCols) THIMBLE_TILE_LOAD(3, sums + 3 * kTileFloats, stride);
  }
  for (int64_t s = 0; s < steps; ++s, left += 2 * kTile, right += 2 * kTile) {
    THIMBLE_TILE_LOAD_ONCE(4, left, stride);
    THIMBLE_TILE_LOAD(6, right, stride);
    THIMBLE_TILE_DOT(0, 4, 6);
    if (kTwoCols) {
      THIMBLE_TILE_LOAD(7, right + kTile, stride);
      THIMBLE_TILE_DOT(1, 4, 7);
    }
    if (kTwoRows) {
      THIMBLE_TILE_LOAD_ONCE(5, left + kTile, stride);
      THIMBLE_TILE_DOT(2, 5, 6);
      if (kTwoCols) THIMBLE_TILE_DOT(3, 5, 7);
    }
  }
  THIMBLE_TILE_STORE(0, sums, stride);
  if (kTwoCols) THIMBLE_TILE_STORE(1, sums + kTileFloats, stride);
  if (kTwoRows) THIMBLE_TILE_STORE(2, sums + 2 * kTileFloats, stride);
  if (kTwoRows && kTwoCols) THIMBLE_TILE_STORE(3, sums + 3 * kTileFloats, stride);
}

}  // namespace

void MultiplyAmxPanels(const uint16_t* left, const uint16_t* right, int64_t steps, int64_t rows, int64_t cols, bool add,
                       float* sums) {
  if (rows > kLanes) {
    cols > kLanes ? MultiplyTiles<true, true>(left, right, steps, add, sums)
                  : MultiplyTiles<true, false>(left, right, steps, add, sums);
  } else {
    cols > kLanes ? MultiplyTiles<false, true>(left, right, steps, add, sums)
                  : MultiplyTiles<false, false>(left, right, steps, add, sums);
  }
}

THIMBLE_AMX_TARGET void StoreAmxSums(const float* sums, float* y, int64_t stride, int64_t rows, int64_t cols,
                                     float scale, bool add) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t c = 0; c < cols; c += kLanes, sums += kTileFloats) {
    const __mmask16 mask = static_cast<__mmask16>(cols - c < kLanes ? (1u << (cols - c)) - 1 : 0xFFFFu);
    for (int64_t r = 0; r < rows; ++r) {
      const __m512 sum = _mm512_load_ps(sums + (r / kLanes * 2 * kTileFloats) + r % kLanes * kLanes);
      float* at = y + r * stride + c;
      const __m512 value =
          add ? _mm512_fmadd_ps(factor, sum, _mm512_maskz_loadu_ps(mask, at)) : _mm512_mul_ps(factor, sum);
      _mm512_mask_storeu_ps(at, mask, value);
    }
  }
}

}  // namespace thimble
#else   // No AMX: nothing calls these.
namespace thimble {

void PackAmxLeft(const MatMulOperand&, int64_t, int64_t, int64_t, int64_t, uint16_t*) { CHECK(false); }
void PackAmxRight(const MatMulOperand&, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, uint16_t*) {
  CHECK(false);
}
AmxScope::AmxScope() = default;
AmxScope::~AmxScope() = default;
void MultiplyAmxPanels(const uint16_t*, const uint16_t*, int64_t, int64_t, int64_t, bool, float*) { CHECK(false); }
void StoreAmxSums(const float*, float*, int64_t, int64_t, int64_t, float, bool) { CHECK(false); }

}  // namespace thimble
#endif  // defined(__x86_64__)
