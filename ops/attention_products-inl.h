// The products of attention's tiles, in f32 registers or on tiles of bf16. Included inside a Highway foreach_target
// source.
#if defined(THIMBLE_OPS_ATTENTION_PRODUCTS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef THIMBLE_OPS_ATTENTION_PRODUCTS_INL_H_
#undef THIMBLE_OPS_ATTENTION_PRODUCTS_INL_H_
#else
#define THIMBLE_OPS_ATTENTION_PRODUCTS_INL_H_
#endif

#include <cstdint>

#include "hwy/highway.h"
#include "ops/amx_panel.h"
#include "ops/attention_scratch.h"
#include "ops/tile_product-inl.h"
#include "ops/tile_product_amx.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {

// Both have, for rows x [rows][columns] in memory:
//   Turn, Pack      x^T or x as the right operand of Multiply, into `panels`
//   Multiply        c[m][j] = or += sum_k a[m][k] right[k][j] for m < rows, j < columns, k < depth
//   AddTransposed   c[m][j] += sum_r x[r][m] y[r][j] for m < columns, j < dim, r < rows
class FloatProducts {
 public:
  explicit FloatProducts(const ThreadScratch& scratch) : scratch_(scratch) {}

  void Turn(const float* x, int64_t stride, int64_t rows, int64_t columns, float* panels) const {
    PackTransposed(x, stride, rows, columns, panels);
  }
  void Pack(const float* x, int64_t stride, int64_t rows, int64_t columns, float* panels) const {
    PackRows(x, stride, rows, columns, panels);
  }
  void Multiply(const float* const* a, int64_t rows, int64_t depth, const float* right, int64_t columns,
                float* const* c, Write write) const {
    MultiplyPanels(RowOperand{a}, rows, depth, right, columns, c, write);
  }
  // Rows of x are those of scratch p or ds, kKeyTile apart.
  void AddTransposed(const float* const* x, int64_t rows, int64_t columns, const float* const* y, int64_t dim,
                     float* const* c) const {
    AddTransposedProduct(x[0], kKeyTile, y, rows, columns, 0, dim, scratch_.rows, c);
  }

 private:
  const ThreadScratch& scratch_;
};

class TileProducts {
 public:
  explicit TileProducts(const ThreadScratch& scratch) : scratch_(scratch) {}

  void Turn(const float* x, int64_t stride, int64_t rows, int64_t columns, float* panels) const {
    const float* pointers[kKeyTile];
    PointTo(x, stride, rows, pointers);
    PackAmxRightRows(pointers, rows, columns, AmxLanes::kRows, Halves(panels));
  }
  void Pack(const float* x, int64_t stride, int64_t rows, int64_t columns, float* panels) const {
    const float* pointers[kKeyTile];
    PointTo(x, stride, rows, pointers);
    PackAmxRightRows(pointers, rows, columns, AmxLanes::kColumns, Halves(panels));
  }
  void Multiply(const float* const* a, int64_t rows, int64_t depth, float* right, int64_t columns, float* const* c,
                Write write) const {
    PackAmxLeftRows(a, rows, depth, AmxLanes::kRows, scratch_.left);
    MultiplyAmxTiles(scratch_.left, rows, {Halves(right), AmxPaddedDepth(depth)}, columns, depth, c,
                     write == Write::kAdd);
  }
  void AddTransposed(const float* const* x, int64_t rows, int64_t columns, const float* const* y, int64_t dim,
                     float* const* c) const {
    PackAmxLeftRows(x, rows, columns, AmxLanes::kColumns, scratch_.left);
    PackAmxRightRows(y, rows, dim, AmxLanes::kColumns, scratch_.right);
    MultiplyAmxTiles(scratch_.left, columns, {scratch_.right, AmxPaddedDepth(rows)}, dim, rows, c, true);
  }

 private:
  static uint16_t* Halves(float* panels) { return reinterpret_cast<uint16_t*>(panels); }
  static void PointTo(const float* x, int64_t stride, int64_t rows, const float** pointers) {
    for (int64_t r = 0; r < rows; ++r) pointers[r] = x + r * stride;
  }

  const ThreadScratch& scratch_;
  const AmxScope tiles_;
};

}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#endif  // THIMBLE_OPS_ATTENTION_PRODUCTS_INL_H_
