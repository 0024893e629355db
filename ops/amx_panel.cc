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

#include "ops/amx_instructions.h"
#include "ops/amx_rows-inl.h"

// Tiles: 0 to 3 sums, 4 and 5 left, 6 and 7 right.
#define THIMBLE_TILE_DOT(sums, left, right) \
  __asm__ volatile("tdpbf16ps %%tmm" #right ", %%tmm" #left ", %%tmm" #sums : :)

namespace thimble {

void PackAmxLeft(const MatMulOperand& operand, int64_t lanes, int64_t lane, int64_t k, int64_t depth, uint16_t* panel) {
  PackLeftSteps(F32Rows{operand.data, operand.stride, Ahead(operand, operand.stride)}, operand.inner_first,
                PartOf(operand, lanes, lane, k, depth), AmxPaddedDepth(depth) / kAmxStep, panel);
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

AmxScope::~AmxScope() { __asm__ volatile("sfence\n tilerelease" : : : "memory"); }

namespace {

// One row of a result.
THIMBLE_AMX_INLINE void StoreRow(const AmxResult& result, bool stream, int64_t r) {
  const __m512 factor = _mm512_set1_ps(result.scale);
  const float* sums = result.sums + (r / kLanes * 2 * kTileFloats) + r % kLanes * kLanes;
  float* y = result.y + r * result.stride;
  for (int64_t c = 0; c < result.cols; c += kLanes, sums += kTileFloats, y += kLanes) {
    const __m512 sum = _mm512_load_ps(sums);
    if (stream) {
      _mm512_stream_ps(y, _mm512_mul_ps(factor, sum));
      continue;
    }
    const __mmask16 mask = static_cast<__mmask16>(result.cols - c < kLanes ? (1u << (result.cols - c)) - 1 : 0xFFFFu);
    const __m512 value =
        result.add ? _mm512_fmadd_ps(factor, sum, _mm512_maskz_loadu_ps(mask, y)) : _mm512_mul_ps(factor, sum);
    _mm512_mask_storeu_ps(y, mask, value);
  }
}

bool Streams(const AmxResult& result) {
  return result.past_caches && !result.add && reinterpret_cast<uintptr_t>(result.y) % 64 == 0 &&
         result.stride % kLanes == 0 && result.cols % kLanes == 0;
}

THIMBLE_AMX_TARGET void StoreRows(const AmxResult& result) {
  const bool stream = Streams(result);
  for (int64_t r = 0; r < result.rows; ++r) StoreRow(result, stream, r);
}

struct NoPieces {
  int64_t next = 0, end = 0;
  void Pack() {}
};

// Nothing between the tile instructions: panels of few lanes.
template <bool kTwoRows, bool kTwoCols>
void MultiplyFew(const AmxProduct& p) {
  const int64_t stride = 64;
  const uint16_t *left = p.left, *right = p.right;
  for (int64_t s = 0; s < p.steps; ++s, left += 2 * kTile, right += 2 * kTile) {
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
    }
  }
}

template <class Pieces>
THIMBLE_AMX_TARGET void MultiplyFull(const AmxProduct& p, const AmxResult& result, Pieces pieces,
                                     int64_t pieces_a_step) {
  const int64_t stride = 64, steps = p.steps;
  const uint16_t *left = p.left, *right = p.right;
  const AmxResult done = result;
  const bool stream = Streams(done);
  const int64_t rows_a_step = (done.rows + steps - 1) / steps;
  int64_t row = 0;
  for (int64_t s = 0; s < steps; ++s, left += 2 * kTile, right += 2 * kTile) {
    THIMBLE_TILE_LOAD_ONCE(4, left, stride);
    THIMBLE_TILE_LOAD(6, right, stride);
    THIMBLE_TILE_DOT(0, 4, 6);
    THIMBLE_TILE_LOAD(7, right + kTile, stride);
    THIMBLE_TILE_DOT(1, 4, 7);
    for (int64_t i = 0; i < pieces_a_step && pieces.next < pieces.end; ++i) pieces.Pack();
    THIMBLE_TILE_LOAD_ONCE(5, left + kTile, stride);
    THIMBLE_TILE_DOT(2, 5, 6);
    THIMBLE_TILE_DOT(3, 5, 7);
    for (const int64_t end = std::min(row + rows_a_step, done.rows); row < end; ++row) StoreRow(done, stream, row);
  }
}

// Calls body with the pieces of a packing, whatever its format.
template <class Body>
void WithPieces(AmxPacking* packing, const Body& body) {
  const MatMulOperand& operand = *packing->operand;
  const auto run = [&](auto source) {
    body(RightPieces<decltype(source)>{
        source, PartOf(operand, packing->lanes, packing->lane, packing->k, packing->depth), operand.inner_first,
        packing->rows, packing->panel, packing->next, packing->pieces()});
  };
  if (operand.data != nullptr) return run(F32Rows{operand.data, operand.stride, Ahead(operand, operand.stride)});
  const WeightView& w = *operand.weight;
  const int64_t ahead = Ahead(operand, w.cols);
  switch (w.format) {
    case Format::kF32:
      return run(F32Rows{static_cast<const float*>(w.data), w.cols, ahead});
    case Format::kBF16:
      return run(BF16Rows{static_cast<const uint16_t*>(w.data), w.cols, ahead});
    case Format::kF16:
      return run(F16Rows{static_cast<const uint16_t*>(w.data), w.cols, ahead});
    case Format::kNF4:
    case Format::kFP4:
    case Format::kInt4:
    case Format::kE2M1:
      return FourBitRows::Fit(w) ? run(FourBitRows(w, ahead / 2)) : run(DecodedRows{w});
    default:
      return run(DecodedRows{w});
  }
}

template <class Rows>
THIMBLE_AMX_TARGET void PackPieces(RightPieces<Rows> pieces, int64_t end) {
  while (pieces.next < end) pieces.Pack();
}

// Where the four tiles of sums begin and how far apart their rows are.
struct SumTiles {
  explicit SumTiles(const AmxProduct& p)
      : row_bytes(p.stride > 0 ? 4 * p.stride : 64),
        at{p.sums, p.sums + (p.stride > 0 ? kLanes : kTileFloats),
           p.sums + (p.stride > 0 ? kLanes * p.stride : 2 * kTileFloats),
           p.sums + (p.stride > 0 ? kLanes * p.stride + kLanes : 3 * kTileFloats)} {}
  int64_t row_bytes;
  float* at[4];
};

void LoadSums(const AmxProduct& p) {
  if (!p.add) {
    THIMBLE_TILE_ZERO(0);
    THIMBLE_TILE_ZERO(1);
    THIMBLE_TILE_ZERO(2);
    THIMBLE_TILE_ZERO(3);
    return;
  }
  const SumTiles tiles(p);
  THIMBLE_TILE_LOAD(0, tiles.at[0], tiles.row_bytes);
  THIMBLE_TILE_LOAD(1, tiles.at[1], tiles.row_bytes);
  THIMBLE_TILE_LOAD(2, tiles.at[2], tiles.row_bytes);
  THIMBLE_TILE_LOAD(3, tiles.at[3], tiles.row_bytes);
}

void StoreSums(const AmxProduct& p) {
  const SumTiles tiles(p);
  THIMBLE_TILE_STORE(0, tiles.at[0], tiles.row_bytes);
  THIMBLE_TILE_STORE(1, tiles.at[1], tiles.row_bytes);
  THIMBLE_TILE_STORE(2, tiles.at[2], tiles.row_bytes);
  THIMBLE_TILE_STORE(3, tiles.at[3], tiles.row_bytes);
}

}  // namespace

void PackAmxRight(AmxPacking* packing, int64_t count) {
  const int64_t end = std::min(packing->pieces(), packing->next + count);
  WithPieces(packing, [&](const auto& pieces) { PackPieces(pieces, end); });
  packing->next = end;
}

void StoreAmxSums(const AmxResult& result) {
  if (result.sums == nullptr) return;
  StoreRows(result);
}

void MultiplyAmxPanels(const AmxProduct& p, const AmxResult& done, AmxPacking* packing, int64_t pieces) {
  const bool pack = packing != nullptr && packing->next < packing->pieces() && pieces > 0;
  LoadSums(p);
  if (p.rows > kLanes && p.cols > kLanes) {
    if (pack) {
      WithPieces(packing, [&](const auto& at) { MultiplyFull(p, done, at, pieces); });
      packing->next = std::min(packing->pieces(), packing->next + pieces * p.steps);
    } else {
      MultiplyFull(p, done, NoPieces(), 0);
    }
    return StoreSums(p);
  }
  if (p.rows > kLanes) {
    MultiplyFew<true, false>(p);
  } else {
    p.cols > kLanes ? MultiplyFew<false, true>(p) : MultiplyFew<false, false>(p);
  }
  StoreSums(p);
  StoreAmxSums(done);
  if (pack) PackAmxRight(packing, pieces * p.steps);
}

}  // namespace thimble
#else   // No AMX: nothing calls these.
namespace thimble {

void PackAmxLeft(const MatMulOperand&, int64_t, int64_t, int64_t, int64_t, uint16_t*) { CHECK(false); }
void PackAmxRight(AmxPacking*, int64_t) { CHECK(false); }
AmxScope::AmxScope() = default;
AmxScope::~AmxScope() = default;
void MultiplyAmxPanels(const AmxProduct&, const AmxResult&, AmxPacking*, int64_t) { CHECK(false); }
void StoreAmxSums(const AmxResult&) { CHECK(false); }

}  // namespace thimble
#endif  // defined(__x86_64__)
