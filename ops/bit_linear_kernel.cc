#include "ops/bit_linear_kernel.h"

#include <algorithm>
#include <cstring>

#include "ops/cpu_level.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

#include "ops/amx_instructions.h"
#endif

namespace thimble {
namespace {

constexpr int64_t kChunk = 64;  // values of 16 bytes of codes: byte j holds values j, j + 16, j + 32, j + 48
constexpr int64_t kHalf = 16;   // rows of half a panel
constexpr int64_t kGroup = 4;   // codes that a dot-product instruction adds at once

int64_t HalfBytes(int64_t depth) { return depth * kHalf; }

void MultiplyPortable(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* panel, int64_t depth,
                      int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < kTernaryPanel; ++c) {
      const uint8_t* codes = panel + c / kHalf * HalfBytes(depth) + c % kHalf * kGroup;
      int32_t sum = 0;
      for (int64_t k = 0; k < depth; ++k) sum += q[r * stride + k] * codes[k / kGroup * kHalf * kGroup + k % kGroup];
      sums[r * kTernaryPanel + c] = sum;
    }
  }
}

uint8_t CodeAt(const uint8_t* row, int64_t k) { return row[k / kChunk * 16 + k % 16] >> (k % kChunk / 16 * 2) & 3; }

void MultiplyFewPortable(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* codes, int64_t depth,
                         int32_t* sums) {
  for (int64_t r = 0; r < rows; ++r) {
    sums[r] = 0;
    for (int64_t k = 0; k < depth; ++k) sums[r] += q[r * stride + k] * CodeAt(codes, k);
  }
}

#if defined(__x86_64__)
// Four consecutive values of a row in every lane.
int32_t FourOf(const int8_t* q) {
  int32_t four;
  std::memcpy(&four, q, sizeof(four));
  return four;
}

// The int16 sums of two products are at most 2 * 2 * 128.
template <int kRows>
__attribute__((target("avx2"))) void MultiplyRowsAvx2(const int8_t* q, int64_t stride, const uint8_t* panel,
                                                      int64_t depth, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int half = 0; half < 2; ++half) {
    __m256i low[kRows], high[kRows];
    for (int r = 0; r < kRows; ++r) low[r] = high[r] = _mm256_setzero_si256();
    const __m256i* codes = reinterpret_cast<const __m256i*>(panel + half * HalfBytes(depth));
    for (int64_t k = 0; k < depth; k += kGroup, codes += 2) {
      const __m256i first = _mm256_loadu_si256(codes), second = _mm256_loadu_si256(codes + 1);
      for (int r = 0; r < kRows; ++r) {
        const __m256i x = _mm256_set1_epi32(FourOf(q + r * stride + k));
        low[r] = _mm256_add_epi32(low[r], _mm256_madd_epi16(_mm256_maddubs_epi16(first, x), ones));
        high[r] = _mm256_add_epi32(high[r], _mm256_madd_epi16(_mm256_maddubs_epi16(second, x), ones));
      }
    }
    for (int r = 0; r < kRows; ++r) {
      __m256i* out = reinterpret_cast<__m256i*>(sums + r * kTernaryPanel + half * kHalf);
      _mm256_storeu_si256(out, low[r]);
      _mm256_storeu_si256(out + 1, high[r]);
    }
  }
}

template <int kRows>
__attribute__((target("avx512f,avx512vnni"))) void MultiplyRowsVnni(const int8_t* q, int64_t stride,
                                                                    const uint8_t* panel, int64_t depth,
                                                                    int32_t* sums) {
  __m512i first[kRows], second[kRows];
  for (int r = 0; r < kRows; ++r) first[r] = second[r] = _mm512_setzero_si512();
  const uint8_t *left = panel, *right = panel + HalfBytes(depth);
  for (int64_t k = 0; k < depth; k += kGroup, left += kChunk, right += kChunk) {
    const __m512i a = _mm512_loadu_si512(left), b = _mm512_loadu_si512(right);
    for (int r = 0; r < kRows; ++r) {
      const __m512i x = _mm512_set1_epi32(FourOf(q + r * stride + k));
      first[r] = _mm512_dpbusd_epi32(first[r], a, x);
      second[r] = _mm512_dpbusd_epi32(second[r], b, x);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_si512(sums + r * kTernaryPanel, first[r]);
    _mm512_storeu_si512(sums + r * kTernaryPanel + kHalf, second[r]);
  }
}

using RowsMultiply = void (*)(const int8_t*, int64_t, const uint8_t*, int64_t, int32_t*);

// As many rows at a time as there are functions for, then fewer.
template <int kMost>
void MultiplyBy(const RowsMultiply (&by_rows)[kMost], const int8_t* q, int64_t stride, int64_t rows,
                const uint8_t* panel, int64_t depth, int32_t* sums) {
  for (int64_t r = 0; r < rows;) {
    const int64_t count = std::min<int64_t>(kMost, rows - r);
    by_rows[count - 1](q + r * stride, stride, panel, depth, sums + r * kTernaryPanel);
    r += count;
  }
}

void MultiplyAvx2(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* panel, int64_t depth, int32_t* sums) {
  static constexpr RowsMultiply kRows[] = {MultiplyRowsAvx2<1>, MultiplyRowsAvx2<2>, MultiplyRowsAvx2<3>,
                                           MultiplyRowsAvx2<4>};
  MultiplyBy(kRows, q, stride, rows, panel, depth, sums);
}

void MultiplyVnni(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* panel, int64_t depth, int32_t* sums) {
  static constexpr RowsMultiply kRows[] = {MultiplyRowsVnni<1>, MultiplyRowsVnni<2>, MultiplyRowsVnni<3>,
                                           MultiplyRowsVnni<4>, MultiplyRowsVnni<5>, MultiplyRowsVnni<6>,
                                           MultiplyRowsVnni<7>, MultiplyRowsVnni<8>};
  MultiplyBy(kRows, q, stride, rows, panel, depth, sums);
}

__attribute__((target("avx2"))) int32_t SumOfLanes(__m256i v) {
  __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
  four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
  return _mm_cvtsi128_si32(four);
}

// 64 codes in their order: 16 bytes four times over, shifted by 0, 2, 4 and 6 bits.
__attribute__((target("avx512f,avx512bw"))) __m512i UnpackChunk(const uint8_t* codes) {
  const __m512i shifts = _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004,
                                          0x0004000400040004, 0x0002000200020002, 0x0002000200020002, 0, 0);
  const __m512i bytes = _mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
  return _mm512_and_si512(_mm512_srlv_epi16(bytes, shifts), _mm512_set1_epi8(3));
}

template <int kRows>
__attribute__((target("avx512f,avx512bw,avx512vnni"))) void MultiplyStoredVnni(const int8_t* q, int64_t stride,
                                                                               const uint8_t* codes, int64_t depth,
                                                                               int32_t* sums) {
  __m512i sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_si512();
  for (int64_t k = 0; k < depth; k += kChunk) {
    const __m512i unpacked = UnpackChunk(codes + k / 4);
    for (int r = 0; r < kRows; ++r) {
      sum[r] = _mm512_dpbusd_epi32(sum[r], unpacked, _mm512_loadu_si512(q + r * stride + k));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    alignas(64) __m256i halves[2];
    _mm512_store_si512(halves, sum[r]);
    sums[r] = SumOfLanes(_mm256_add_epi32(halves[0], halves[1]));
  }
}

void MultiplyFewVnni(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* codes, int64_t depth,
                     int32_t* sums) {
  static constexpr RowsMultiply kRows[] = {MultiplyStoredVnni<1>, MultiplyStoredVnni<2>, MultiplyStoredVnni<3>,
                                           MultiplyStoredVnni<4>};
  kRows[rows - 1](q, stride, codes, depth, sums);
}

// Two halves of a chunk: values 0 to 31 and 32 to 63.
__attribute__((target("avx2"))) void MultiplyFewAvx2(const int8_t* q, int64_t stride, int64_t rows,
                                                     const uint8_t* codes, int64_t depth, int32_t* sums) {
  const __m256i ones = _mm256_set1_epi16(1), mask = _mm256_set1_epi8(3);
  const __m256i low = _mm256_set_epi64x(2, 2, 0, 0), high = _mm256_set_epi64x(6, 6, 4, 4);
  for (int64_t r = 0; r < rows; ++r) {
    __m256i sum = _mm256_setzero_si256();
    for (int64_t k = 0; k < depth; k += kChunk) {
      const __m256i bytes =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + k / 4)));
      const __m256i* x = reinterpret_cast<const __m256i*>(q + r * stride + k);
      const __m256i first = _mm256_and_si256(_mm256_srlv_epi64(bytes, low), mask);
      const __m256i second = _mm256_and_si256(_mm256_srlv_epi64(bytes, high), mask);
      // Four products of at most 2 * 128 in int16.
      const __m256i pairs = _mm256_add_epi16(_mm256_maddubs_epi16(first, _mm256_loadu_si256(x)),
                                             _mm256_maddubs_epi16(second, _mm256_loadu_si256(x + 1)));
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
    }
    sums[r] = SumOfLanes(sum);
  }
}

// Tiles: 0 to 3 sums, 4 and 5 rows of q, 6 and 7 halves of the panel.

// Signed rows times unsigned codes.
#define THIMBLE_TILE_DOT(sums, rows, codes) __asm__ volatile("tdpbsud %%tmm" #codes ", %%tmm" #rows ", %%tmm" #sums : :)

void MultiplyFullTiles(const int8_t* q, int64_t stride, const uint8_t* panel, int64_t depth, int32_t* sums) {
  const int64_t codes_stride = kChunk, sums_stride = kTernaryPanel * 4;
  const int8_t* below = q + kHalf * stride;
  const uint8_t *left = panel, *right = panel + HalfBytes(depth);
  THIMBLE_TILE_ZERO(0);
  THIMBLE_TILE_ZERO(1);
  THIMBLE_TILE_ZERO(2);
  THIMBLE_TILE_ZERO(3);
  for (int64_t k = 0; k < depth; k += kChunk, left += kHalf * kChunk, right += kHalf * kChunk) {
    THIMBLE_TILE_LOAD(4, q + k, stride);
    THIMBLE_TILE_LOAD(6, left, codes_stride);
    THIMBLE_TILE_DOT(0, 4, 6);
    THIMBLE_TILE_LOAD(7, right, codes_stride);
    THIMBLE_TILE_DOT(1, 4, 7);
    THIMBLE_TILE_LOAD(5, below + k, stride);
    THIMBLE_TILE_DOT(2, 5, 6);
    THIMBLE_TILE_DOT(3, 5, 7);
  }
  THIMBLE_TILE_STORE(0, sums, sums_stride);
  THIMBLE_TILE_STORE(1, sums + kHalf, sums_stride);
  THIMBLE_TILE_STORE(2, sums + kHalf * kTernaryPanel, sums_stride);
  THIMBLE_TILE_STORE(3, sums + kHalf * kTernaryPanel + kHalf, sums_stride);
}

// Whole tiles only; fewer rows take the dot products of vectors, which give the same sums.
void MultiplyTiles(const int8_t* q, int64_t stride, int64_t rows, const uint8_t* panel, int64_t depth, int32_t* sums) {
  if (rows == kTernaryRows) return MultiplyFullTiles(q, stride, panel, depth, sums);
  MultiplyVnni(q, stride, rows, panel, depth, sums);
}

bool HasVnni() {
  static const bool has = __builtin_cpu_supports("avx512vnni");
  return has;
}

bool HasInt8Tiles() {
  static const bool has = [] {
    unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & (1u << 25)) != 0;
  }();
  return has && HasAmx() && HasVnni();
}
#endif

}  // namespace

#if defined(__x86_64__)
namespace {

// Four rows by 16 codes each: a 4 x 4 transpose of groups of four codes.
void PackFour(const __m128i (&rows)[4], uint8_t* out) {
  const __m128i a = _mm_unpacklo_epi32(rows[0], rows[1]), b = _mm_unpacklo_epi32(rows[2], rows[3]);
  const __m128i c = _mm_unpackhi_epi32(rows[0], rows[1]), d = _mm_unpackhi_epi32(rows[2], rows[3]);
  const __m128i turned[4] = {_mm_unpacklo_epi64(a, b), _mm_unpackhi_epi64(a, b), _mm_unpacklo_epi64(c, d),
                             _mm_unpackhi_epi64(c, d)};
  for (int i = 0; i < 4; ++i) _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i * kHalf * kGroup), turned[i]);
}

}  // namespace

void PackTernaryPanel(const uint8_t* codes, int64_t stride, int64_t count, int64_t depth, uint8_t* panel) {
  const __m128i mask = _mm_set1_epi8(3);
  for (int64_t first = 0; first < kTernaryPanel; first += 4) {
    const uint8_t* row[4];
    for (int64_t i = 0; i < 4; ++i) row[i] = codes + std::min(first + i, count - 1) * stride;
    uint8_t* out = panel + first / kHalf * HalfBytes(depth) + first % kHalf * kGroup;
    for (int64_t k = 0; k < depth; k += kChunk) {
      __m128i bytes[4];
      for (int i = 0; i < 4; ++i) bytes[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row[i] + k / 4));
      for (int64_t part = 0; part < 4; ++part) {
        __m128i fields[4];
        for (int i = 0; i < 4; ++i) {
          fields[i] = _mm_and_si128(bytes[i], mask);
          bytes[i] = _mm_srli_epi16(bytes[i], 2);
        }
        PackFour(fields, out + (k + part * 16) * kHalf);
      }
    }
  }
}
#else
void PackTernaryPanel(const uint8_t* codes, int64_t stride, int64_t count, int64_t depth, uint8_t* panel) {
  for (int64_t c = 0; c < kTernaryPanel; ++c) {
    const uint8_t* row = codes + std::min(c, count - 1) * stride;
    uint8_t* out = panel + c / kHalf * HalfBytes(depth) + c % kHalf * kGroup;
    for (int64_t k = 0; k < depth; ++k) out[k / kGroup * kHalf * kGroup + k % kGroup] = CodeAt(row, k);
  }
}
#endif

TernaryMultiply ActiveTernaryMultiply() {
#if defined(__x86_64__)
  if (HasInt8Tiles()) return MultiplyTiles;
  if (ActiveCpuLevel() >= CpuLevel::kAvx512 && HasVnni()) return MultiplyVnni;
  if (ActiveCpuLevel() >= CpuLevel::kAvx2) return MultiplyAvx2;
#endif
  return MultiplyPortable;
}

TernaryRowMultiply ActiveTernaryRowMultiply() {
#if defined(__x86_64__)
  if (ActiveCpuLevel() >= CpuLevel::kAvx512 && HasVnni()) return MultiplyFewVnni;
  if (ActiveCpuLevel() >= CpuLevel::kAvx2) return MultiplyFewAvx2;
#endif
  return MultiplyFewPortable;
}

bool TernaryUsesTiles() {
#if defined(__x86_64__)
  return HasInt8Tiles();
#else
  return false;
#endif
}

}  // namespace thimble
