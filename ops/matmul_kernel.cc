// Register tiles (6x16 with AVX2, 8x48 with AVX-512), compiled once a CPU level.
#include "ops/matmul_kernel.h"

#include <cstddef>
#include <cstring>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/matmul_kernel.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
// Behind foreach_target.h, which includes this file once a level.
#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/matmul_pack-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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

// What a tile is added to comes from memory while it is computed.
template <int kV, size_t... kI>
HWY_INLINE void PrefetchRows(const MatMulTile& tile, std::index_sequence<kI...>) {
  for (int64_t c = 0; c < kV * kLanes; c += 16) (hwy::Prefetch(tile.y + kI * tile.stride + c), ...);
}

// kR rows by kV vectors, the vectors behind kVectors being those of the second panel.
template <int kR, int kV>
HWY_INLINE void MultiplyPanels(int64_t depth, const float* HWY_RESTRICT left, const float* HWY_RESTRICT right,
                               int64_t second, const MatMulTile& tile) {
  const F32 d;
  constexpr std::make_index_sequence<kR> kAllRows;
  Vec sums[kR * kV];
  SetZero(d, sums, std::make_index_sequence<kR * kV>());
  PrefetchRows<kV>(tile, kAllRows);
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

// Vectors beyond the tile's columns are left out.
template <int kR>
void MultiplyTile(int64_t depth, const float* left, const float* right, const MatMulTile& tile) {
  if (tile.count <= kLanes) return MultiplyPanels<kR, 1>(depth, left, right, 0, tile);
  if (tile.count <= 2 * kLanes) return MultiplyPanels<kR, 2>(depth, left, right, 0, tile);
  MultiplyPanels<kR, kVectors>(depth, left, right, 0, tile);
}

template <int kR>
void MultiplyWideTile(int64_t depth, const float* left, const float* right, int64_t second, const MatMulTile& tile) {
  MultiplyPanels<kR, 2 * kVectors>(depth, left, right, second, tile);
}

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
  if (!HasNibbles(w.format) || w.offsets != nullptr || w.column_blocks != nullptr) return false;
  const int64_t block = w.block_size;
  return block % 32 == 0 && w.cols % block == 0 && depth % 32 == 0 &&
         (col % block == 0 || col % block + depth <= block);
}

const MatMulKernels& F32Kernels() { return HWY_DYNAMIC_DISPATCH(Kernels)(); }

}  // namespace thimble
#endif  // HWY_ONCE
