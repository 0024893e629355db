// Products of small tiles for kernels that keep their intermediates in cache (attention, cut cross-entropy): panels,
// a register-tiled product and exp with FMA. Included inside a Highway foreach_target source.
//
// Every element of a product is one chain of FMAs over k, cut at multiples of kDepthBlock and added to the output block
// by block: its bits depend on k alone, not on where the tile begins or how many rows it has.
#if defined(THIMBLE_OPS_TILE_PRODUCT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_TILE_PRODUCT_INL_H_
#undef THIMBLE_OPS_TILE_PRODUCT_INL_H_
#else
#define THIMBLE_OPS_TILE_PRODUCT_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "ops/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// A panel is kPanel columns of the right operand, [k][kPanel]: two vectors a row.
constexpr int64_t kLanes = hn::MaxLanes(F32());
constexpr int64_t kPanel = 2 * kLanes;
// Rows of the register tile: two accumulators a row, 16 or 32 vector registers.
constexpr int kTileRows = HWY_TARGET <= HWY_AVX3 ? 8 : 6;
// Rows of a panel that stay in the first-level cache together.
constexpr int64_t kDepthBlock = 256;

constexpr int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Left operands. RowOperand: element (m, k) at rows[m][k]. ColumnOperand: at data[k * stride + m].
struct RowOperand {
  const float* const* rows;
  RowOperand At(int64_t m, int64_t) const { return {rows + m}; }
};
struct ColumnOperand {
  const float* data;
  int64_t stride;
  ColumnOperand At(int64_t m, int64_t) const { return {data + m, stride}; }
};

enum class Write : uint8_t { kStore, kAdd };

// One register tile: R rows by one panel, `depth` steps from k on; `columns` of them are written.
template <int R>
HWY_INLINE void FinishTile(const hn::Vec<F32> (&sum)[R][2], float* const* c, int64_t column, int64_t columns,
                           Write write) {
  const F32 d;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    float* out = c[r] + column;
    if (HWY_LIKELY(columns >= kPanel)) {
      const bool add = write == Write::kAdd;
      hn::StoreU(add ? hn::Add(hn::LoadU(d, out), sum[r][0]) : sum[r][0], d, out);
      hn::StoreU(add ? hn::Add(hn::LoadU(d, out + kLanes), sum[r][1]) : sum[r][1], d, out + kLanes);
    } else {
      alignas(64) float values[kPanel];
      hn::Store(sum[r][0], d, values);
      hn::Store(sum[r][1], d, values + kLanes);
      for (int64_t i = 0; i < columns; ++i) out[i] = write == Write::kAdd ? out[i] + values[i] : values[i];
    }
  }
}

template <int R>
HWY_INLINE void RegisterTile(RowOperand a, int64_t k, int64_t depth, const float* HWY_RESTRICT panel, float* const* c,
                             int64_t column, int64_t columns, Write write) {
  const F32 d;
  const float* rows[R];
  hn::Vec<F32> sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    rows[r] = a.rows[r] + k;
    sum[r][0] = sum[r][1] = hn::Zero(d);
    hwy::Prefetch(c[r] + column);
  }
  for (int64_t i = 0; i < depth; ++i, panel += kPanel) {
    const auto b0 = hn::Load(d, panel), b1 = hn::Load(d, panel + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto value = hn::Set(d, rows[r][i]);
      sum[r][0] = hn::MulAdd(value, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(value, b1, sum[r][1]);
    }
  }
  FinishTile<R>(sum, c, column, columns, write);
}

template <int R>
HWY_INLINE void RegisterTile(ColumnOperand a, int64_t k, int64_t depth, const float* HWY_RESTRICT panel,
                             float* const* c, int64_t column, int64_t columns, Write write) {
  const F32 d;
  hn::Vec<F32> sum[R][2];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    sum[r][0] = sum[r][1] = hn::Zero(d);
    hwy::Prefetch(c[r] + column);
  }
  const float* values = a.data + k * a.stride;
  for (int64_t i = 0; i < depth; ++i, panel += kPanel, values += a.stride) {
    const auto b0 = hn::Load(d, panel), b1 = hn::Load(d, panel + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const auto value = hn::Set(d, values[r]);
      sum[r][0] = hn::MulAdd(value, b0, sum[r][0]);
      sum[r][1] = hn::MulAdd(value, b1, sum[r][1]);
    }
  }
  FinishTile<R>(sum, c, column, columns, write);
}

// The rows that are left below a full register tile.
template <class A>
HWY_INLINE void RestOfRows(int64_t rows, A a, int64_t k, int64_t depth, const float* panel, float* const* c,
                           int64_t column, int64_t columns, Write write) {
  if constexpr (kTileRows > 6) {
    if (rows == 6) return RegisterTile<6>(a, k, depth, panel, c, column, columns, write);
    if (rows == 7) return RegisterTile<7>(a, k, depth, panel, c, column, columns, write);
  }
  switch (rows) {
    case 1:
      return RegisterTile<1>(a, k, depth, panel, c, column, columns, write);
    case 2:
      return RegisterTile<2>(a, k, depth, panel, c, column, columns, write);
    case 3:
      return RegisterTile<3>(a, k, depth, panel, c, column, columns, write);
    case 4:
      return RegisterTile<4>(a, k, depth, panel, c, column, columns, write);
    case 5:
      return RegisterTile<5>(a, k, depth, panel, c, column, columns, write);
    default:
      break;
  }
}

// c[m][column + j] = or += sum_k a(m, k) panel[k][j] over `depth` steps (at most kDepthBlock) from k on, for m < rows
// and j < columns <= kPanel.
template <class A>
HWY_INLINE void MultiplyPanel(A a, int64_t rows, int64_t k, int64_t depth, const float* panel, float* const* c,
                              int64_t column, int64_t columns, Write write) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows) {
    RegisterTile<kTileRows>(a.At(m, k), k, depth, panel, c + m, column, columns, write);
  }
  RestOfRows(rows - m, a.At(m, k), k, depth, panel, c + m, column, columns, write);
}

// c[m][j] = or += sum_k a(m, k) b(k, j) for m < rows, j < columns, k < depth. panels: b as [columns / kPanel][depth]
// [kPanel], 64-byte aligned, the last panel padded.
template <class A>
HWY_NOINLINE void MultiplyPanels(A a, int64_t rows, int64_t depth, const float* panels, int64_t columns,
                                 float* const* c, Write write) {
  for (int64_t k = 0; k < depth; k += kDepthBlock) {
    const int64_t block = std::min(kDepthBlock, depth - k);
    for (int64_t column = 0; column < columns; column += kPanel) {
      MultiplyPanel(a, rows, k, block, panels + column * depth + k * kPanel, c, column, columns - column,
                    k == 0 ? write : Write::kAdd);
    }
  }
}

// panels[j / kPanel][k][j % kPanel] = b[k][j]: rows of b at b + k * stride. Columns up to the panel's end become 0.
HWY_INLINE void PackRows(const float* b, int64_t stride, int64_t depth, int64_t columns, float* panels) {
  const F32 d;
  for (int64_t column = 0; column < columns; column += kPanel) {
    float* panel = panels + column * depth;
    if (column + kPanel <= columns) {
      for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
        const float* row = b + k * stride + column;
        hn::Store(hn::LoadU(d, row), d, panel);
        hn::Store(hn::LoadU(d, row + kLanes), d, panel + kLanes);
      }
    } else {
      for (int64_t k = 0; k < depth; ++k, panel += kPanel) {
        for (int64_t j = 0; j < kPanel; ++j) panel[j] = column + j < columns ? b[k * stride + column + j] : 0;
      }
    }
  }
}

// Rows that PackTransposedGroup turns at a time.
constexpr int64_t kGroup = kPanel < 4 ? kPanel : 4;

// out[k * kPanel + i] = rows[i][k] for i < kGroup, k < depth; null rows give 0.
HWY_INLINE void PackTransposedGroup(const float* const* rows, int64_t depth, float* out) {
  int64_t k = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<float, 4> d;
  const hn::Repartition<double, decltype(d)> d64;
  for (; rows[3] != nullptr && k + 4 <= depth; k += 4) {
    const auto v0 = hn::LoadU(d, rows[0] + k), v1 = hn::LoadU(d, rows[1] + k);
    const auto v2 = hn::LoadU(d, rows[2] + k), v3 = hn::LoadU(d, rows[3] + k);
    const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, v0, v1));
    const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, v2, v3));
    const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, v0, v1));
    const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, v2, v3));
    float* turned = out + k * kPanel;
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, low01, low23)), d, turned);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23)), d, turned + kPanel);
    hn::StoreU(hn::BitCast(d, hn::InterleaveLower(d64, high01, high23)), d, turned + 2 * kPanel);
    hn::StoreU(hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23)), d, turned + 3 * kPanel);
  }
#endif
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < kGroup; ++i) out[k * kPanel + i] = rows[i] == nullptr ? 0 : rows[i][k];
  }
}

// The turned form of x [rows][depth]: panels[j / kPanel][k][j % kPanel] = x[j][k], 0 for j >= rows up to the panel's
// end.
HWY_INLINE void PackTransposed(const float* x, int64_t stride, int64_t rows, int64_t depth, float* panels) {
  for (int64_t j = 0; j < RoundUp(rows, kPanel); j += kGroup) {
    const float* group[4] = {};
    for (int64_t i = 0; i < kGroup; ++i) group[i] = j + i < rows ? x + (j + i) * stride : nullptr;
    PackTransposedGroup(group, depth, panels + j / kPanel * (depth * kPanel) + j % kPanel);
  }
}

// Rounded to bf16, nearest even; NaN stays NaN.
template <class D>
HWY_INLINE hn::Vec<D> RoundToBF16(D d, hn::Vec<D> x) {
  const hn::RebindToUnsigned<D> du;
  const auto bits = hn::BitCast(du, x);
  const auto even = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto rounded = hn::And(hn::Add(bits, hn::Add(even, hn::Set(du, 0x7FFFu))), hn::Set(du, 0xFFFF0000u));
  return hn::IfThenElse(hn::Eq(x, x), hn::BitCast(d, rounded), x);
}
HWY_INLINE void RoundToBF16(const float* x, int64_t count, float* y) {
  const F32 d;
  const hn::CappedTag<float, 1> one;
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) hn::StoreU(RoundToBF16(d, hn::LoadU(d, x + i)), d, y + i);
  for (; i < count; ++i) hn::StoreU(RoundToBF16(one, hn::LoadU(one, x + i)), one, y + i);
}

// c[m][j] += sum_r x[r * stride + m] y[r][j] for m < columns_of_x and j in [begin, end), r < rows; `panel` holds
// rows * kPanel floats. The sum over r is cut at multiples of kDepthBlock.
// With `round_y`, y is rounded to bf16.
HWY_INLINE void AddTransposedProduct(const float* x, int64_t stride, const float* const* y, int64_t rows,
                                     int64_t columns_of_x, int64_t begin, int64_t end, float* panel, float* const* c,
                                     bool round_y = false) {
  const F32 d;
  for (int64_t column = begin; column < end; column += kPanel) {
    const int64_t columns = std::min(kPanel, end - column);
    for (int64_t r = 0; r < rows; ++r) {
      if (columns == kPanel) {
        hn::Store(hn::LoadU(d, y[r] + column), d, panel + r * kPanel);
        hn::Store(hn::LoadU(d, y[r] + column + kLanes), d, panel + r * kPanel + kLanes);
      } else {
        std::fill_n(std::copy_n(y[r] + column, columns, panel + r * kPanel), kPanel - columns, 0.0f);
      }
      if (round_y) RoundToBF16(panel + r * kPanel, kPanel, panel + r * kPanel);
    }
    for (int64_t k = 0; k < rows; k += kDepthBlock) {
      MultiplyPanel(ColumnOperand{x, stride}, columns_of_x, k, std::min(kDepthBlock, rows - k), panel + k * kPanel, c,
                    column, columns, Write::kAdd);
    }
  }
}

// e^x for x <= 0 within 1.5 ulp of the result; 0 below -87.3, NaN for NaN.
template <class D>
HWY_INLINE hn::Vec<D> ExpNonPositive(D d, hn::Vec<D> x) {
  const auto lowest = hn::Set(d, -87.3f);
  const auto magic = hn::Set(d, 12582912.0f);  // adding 1.5 * 2^23 rounds to the nearest integer
  const auto clamped = hn::Max(lowest, x);     // in this order x86 keeps NaN
  const auto n = hn::Sub(hn::MulAdd(clamped, hn::Set(d, 1.44269504088896341f), magic), magic);
  auto r = hn::NegMulAdd(n, hn::Set(d, 0.693359375f), clamped);
  r = hn::NegMulAdd(n, hn::Set(d, -2.12194440e-4f), r);
  auto p = hn::Set(d, 1.9875691500e-4f);
  p = hn::MulAdd(p, r, hn::Set(d, 1.3981999507e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 8.3334519073e-3f));
  p = hn::MulAdd(p, r, hn::Set(d, 4.1665795894e-2f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.6666665459e-1f));
  p = hn::MulAdd(p, r, hn::Set(d, 5.0000001201e-1f));
  p = hn::Add(hn::MulAdd(p, hn::Mul(r, r), r), hn::Set(d, 1.0f));
  const auto y = hn::Mul(p, PowerOfTwo(d, n));
  return hn::IfThenZeroElse(hn::Lt(x, lowest), y);
}

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_TILE_PRODUCT_INL_H_
