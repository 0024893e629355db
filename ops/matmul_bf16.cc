#include "ops/matmul_bf16.h"

#include <atomic>
#include <cmath>
#include <utility>

#include "ops/cpu_level.h"
#include "ops/matmul_amx.h"

#if defined(__x86_64__)
// gcc's own header leaves the ignored lanes of its unmasked intrinsics uninitialised on purpose.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#include <immintrin.h>
#endif

namespace thimble {
namespace {

std::atomic<const MatMulKernels*> g_test_kernels{nullptr};

#if defined(__x86_64__)
#define THIMBLE_BF16_TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")))
#define THIMBLE_BF16_INLINE THIMBLE_BF16_TARGET __attribute__((always_inline)) inline

// The tile of the AVX-512 f32 kernels, whose packing these use.
constexpr int kRows = 8;
constexpr int kVectors = 3;
constexpr int kCols = 16 * kVectors;

// Constant indices only, so that every accumulator is a register.
template <size_t... kJ>
THIMBLE_BF16_INLINE void DotRow(__m512bh left, const __m512bh* right, __m512* sums, std::index_sequence<kJ...>) {
  ((sums[kJ] = _mm512_dpbf16_ps(sums[kJ], left, right[kJ])), ...);
}

template <int kV, size_t... kI>
THIMBLE_BF16_INLINE void DotStep(const float* left, const __m512bh* right, __m512* sums, std::index_sequence<kI...>) {
  (DotRow((__m512bh)_mm512_set1_ps(left[kI]), right, sums + kI * kV, std::make_index_sequence<kV>()), ...);
}

template <size_t... kJ>
THIMBLE_BF16_INLINE void LoadRight(const float* right, int64_t second, __m512bh* out, std::index_sequence<kJ...>) {
  ((out[kJ] = (__m512bh)_mm512_loadu_si512(right + (kJ < kVectors ? 16 * kJ : second + 16 * (kJ - kVectors)))), ...);
}

template <size_t... kI>
THIMBLE_BF16_INLINE void SetZero(__m512* sums, std::index_sequence<kI...>) {
  ((sums[kI] = _mm512_setzero_ps()), ...);
}

THIMBLE_BF16_INLINE void StoreVector(__m512 sum, const MatMulTile& tile, int64_t row, int64_t col) {
  if (col >= tile.count) return;
  const int64_t lanes = tile.count - col < 16 ? tile.count - col : 16;
  const __mmask16 mask = static_cast<__mmask16>((1u << lanes) - 1);
  float* y = tile.y + row * tile.stride + col;
  const __m512 scale = _mm512_set1_ps(tile.scale);
  const __m512 value =
      tile.add ? _mm512_fmadd_ps(scale, sum, _mm512_maskz_loadu_ps(mask, y)) : _mm512_mul_ps(scale, sum);
  _mm512_mask_storeu_ps(y, mask, value);
}

template <int kV, size_t... kI>
THIMBLE_BF16_INLINE void StoreAll(const __m512* sums, const MatMulTile& tile, std::index_sequence<kI...>) {
  (StoreVector(sums[kI], tile, kI / kV, kI % kV * 16), ...);
}

template <int kR, int kV>
THIMBLE_BF16_INLINE void DotPanels(int64_t pairs, const float* left, const float* right, int64_t second,
                                   const MatMulTile& tile) {
  __m512 sums[kR * kV];
  SetZero(sums, std::make_index_sequence<kR * kV>());
  for (int64_t k = 0; k < pairs; ++k, left += kRows, right += kCols) {
    __m512bh row[kV];
    LoadRight(right, second, row, std::make_index_sequence<kV>());
    DotStep<kV>(left, row, sums, std::make_index_sequence<kR>());
  }
  StoreAll<kV>(sums, tile, std::make_index_sequence<kR * kV>());
}

template <int kR>
THIMBLE_BF16_TARGET void DotTile(int64_t pairs, const float* left, const float* right, const MatMulTile& tile) {
  if (tile.count <= 16) return DotPanels<kR, 1>(pairs, left, right, 0, tile);
  if (tile.count <= 32) return DotPanels<kR, 2>(pairs, left, right, 0, tile);
  DotPanels<kR, kVectors>(pairs, left, right, 0, tile);
}

template <int kR>
THIMBLE_BF16_TARGET void DotWideTile(int64_t pairs, const float* left, const float* right, int64_t second,
                                     const MatMulTile& tile) {
  DotPanels<kR, 2 * kVectors>(pairs, left, right, second, tile);
}

// The packed values are bf16 already, so that the upper halves are all there is. Pair k / 2 is written after inner
// indices k and k + 1 are read.
THIMBLE_BF16_TARGET void PairPanel(float* panel, int64_t depth, int width) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xFFFF0000u));
  for (int64_t k = 0; k < depth; k += 2) {
    for (int c = 0; c < width; c += 16) {
      const __mmask16 mask = static_cast<__mmask16>(width - c < 16 ? (1u << (width - c)) - 1 : 0xFFFFu);
      const __m512i even = _mm512_maskz_loadu_epi32(mask, panel + k * width + c);
      const __m512i odd =
          k + 1 < depth ? _mm512_maskz_loadu_epi32(mask, panel + (k + 1) * width + c) : _mm512_setzero_si512();
      const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(even, 16), _mm512_and_si512(odd, upper));
      _mm512_mask_storeu_epi32(panel + k / 2 * width + c, mask, pair);
    }
  }
}

template <size_t... kI>
MatMulKernels MakeDotKernels(std::index_sequence<kI...>) {
  MatMulKernels kernels = F32Kernels();
  ((kernels.multiply[kI] = DotTile<kI + 1>), ...);
  kernels.multiply_wide[0] = DotWideTile<1>;
  kernels.multiply_wide[1] = DotWideTile<2>;
  kernels.pair = PairPanel;
  return kernels;
}

const MatMulKernels& DotKernels() {
  static const MatMulKernels kernels = MakeDotKernels(std::make_index_sequence<kRows>());
  return kernels;
}

bool DotKernelsFit() { return F32Kernels().rows == kRows && F32Kernels().cols == kCols; }
#else
const MatMulKernels& DotKernels() { return F32Kernels(); }
bool DotKernelsFit() { return false; }
#endif

constexpr int64_t kCheckDepth = 37;
constexpr int64_t kCheckWidth = 96;

// Rows of kCheckDepth values in (-1, 1).
void FillCheckRows(uint32_t state, int64_t rows, float* values) {
  for (int64_t i = 0; i < rows * kCheckDepth; ++i) {
    state = state * 1664525 + 1013904223;
    values[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
}

// The product of r rows and count columns by one table; two panels when wide.
void CheckProduct(const MatMulKernels& kernels, int r, int64_t count, bool wide, const float* rows, const float* cols,
                  float* y) {
  float left[MatMulKernels::kMaxRows * kCheckDepth + 16];
  float right[2 * kCheckWidth * kCheckDepth + 16];
  const int64_t panel = kernels.cols * kCheckDepth;
  kernels.pack_left_rows(rows, kCheckDepth, r, kCheckDepth, true, left, 0);
  kernels.pack_right_rows(cols, kCheckDepth, count, kCheckDepth, true, right, panel);
  if (kernels.pair != nullptr) {
    kernels.pair(left, kCheckDepth, kernels.rows);
    for (int64_t c = 0; c < count; c += kernels.cols) kernels.pair(right + c * kCheckDepth, kCheckDepth, kernels.cols);
  }
  const int64_t steps = kernels.pair != nullptr ? (kCheckDepth + 1) / 2 : kCheckDepth;
  const MatMulTile tile = {y, kCheckWidth, count, 0.5f, true};
  if (wide) {
    kernels.multiply_wide[r - 1](steps, left, right, panel, tile);
  } else {
    kernels.multiply[r - 1](steps, left, right, tile);
  }
}

}  // namespace

bool Bf16KernelsAgree(const MatMulKernels& pairs, const MatMulKernels& f32) {
  if (pairs.rows != f32.rows || pairs.cols != f32.cols || 2 * pairs.cols > kCheckWidth) return false;
  float rows[MatMulKernels::kMaxRows * kCheckDepth], cols[kCheckWidth * kCheckDepth];
  FillCheckRows(1, MatMulKernels::kMaxRows, rows);
  FillCheckRows(2, kCheckWidth, cols);
  for (int wide = 0; wide < 2; ++wide) {
    for (int r = 1; r <= (wide ? MatMulKernels::kMaxWideRows : pairs.rows); ++r) {
      for (const int64_t missing : {0, 3, 20, 40}) {
        const int64_t count = (1 + wide) * pairs.cols - missing;
        if (count <= wide * pairs.cols) continue;
        float y[MatMulKernels::kMaxRows * kCheckWidth], expected[MatMulKernels::kMaxRows * kCheckWidth];
        for (int64_t i = 0; i < MatMulKernels::kMaxRows * kCheckWidth; ++i) y[i] = expected[i] = 0.25f;
        CheckProduct(pairs, r, count, wide != 0, rows, cols, y);
        CheckProduct(f32, r, count, wide != 0, rows, cols, expected);
        for (int64_t i = 0; i < MatMulKernels::kMaxRows * kCheckWidth; ++i) {
          // kCheckDepth sums below kCheckDepth, each rounded to 2^-24 of itself in either order.
          if (!(std::abs(y[i] - expected[i]) <= kCheckDepth * kCheckDepth * 0x1p-23f)) return false;
        }
      }
    }
  }
  return true;
}

Bf16Path ActiveBf16Path() {
  if (HasAmx()) {
    static const bool tiles_agree = AmxAgrees();
    if (tiles_agree) return Bf16Path::kTiles;
  }
  if (!HasBf16Dot() || !DotKernelsFit()) return Bf16Path::kRounded;
  static const bool agree = Bf16KernelsAgree(DotKernels(), F32Kernels());
  return agree ? Bf16Path::kDot : Bf16Path::kDistrust;
}

const MatMulKernels* Bf16Kernels() {
  if (const MatMulKernels* kernels = g_test_kernels.load(std::memory_order_relaxed)) return kernels;
  return ActiveBf16Path() == Bf16Path::kDot ? &DotKernels() : nullptr;
}

bool OnTiles(Compute compute) {
  return compute == Compute::kBF16 && Bf16Kernels() == nullptr && ActiveBf16Path() == Bf16Path::kTiles;
}

void SetBf16KernelsForTest(const MatMulKernels* kernels) { g_test_kernels.store(kernels, std::memory_order_relaxed); }

}  // namespace thimble
