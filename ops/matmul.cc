// Blocking: a task is a block of the result; for each block of the inner dimension it packs blocks of the left
// operand (sized for the second-level cache) and panels of the right one, and multiplies panel by panel.
#include "ops/matmul.h"

#include <algorithm>
#include <cstddef>

#include "ops/check.h"
#include "ops/matmul_amx.h"
#include "ops/matmul_bf16.h"
#include "ops/matmul_kernel.h"
#include "ops/matmul_product.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

// Rows and columns of the blocks of a task; with kMatMulInnerBlock floats a row, 112 and 256 KiB.
constexpr int64_t kMaxLeftRows = 112;
constexpr int64_t kMaxRightCols = 256;
// Decoded weights on their way into panels.
constexpr int64_t kMaxDecoded = 32 * kMatMulInnerBlock;
// Room for vectors that are wider than a panel.
constexpr int64_t kSlack = 16;

constexpr int64_t kLeftFloats = kMaxLeftRows * kMatMulInnerBlock + kSlack;
constexpr int64_t kRightFloats = kMaxRightCols * kMatMulInnerBlock + kSlack;
constexpr int64_t kThreadFloats = kLeftFloats + kRightFloats + kMaxDecoded;
// Below this many multiplications starting a second thread costs more than it gains.
constexpr int64_t kMinParallelWork = 1 << 17;

struct Product : MatMulProduct {
  bool round;
  const MatMulKernels* kernels;
};

// Blocks of one thread's scratch.
struct Panels {
  float* left;
  float* right;
  float* decoded;
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

void Pair(const Product& p, float* panel, int64_t panels, int64_t depth, int width) {
  for (int64_t i = 0; i < panels && p.kernels->pair != nullptr; ++i) {
    p.kernels->pair(panel + i * depth * width, depth, width);
  }
}

void PackLeft(const Product& p, int64_t row, int64_t rows, int64_t k, int64_t depth, float* out) {
  const int width = p.kernels->rows;
  const float* source = p.left.data + (p.left.inner_first ? k * p.left.stride + row : row * p.left.stride + k);
  const auto pack = p.left.inner_first ? p.kernels->pack_left_cols : p.kernels->pack_left_rows;
  pack(source, p.left.stride, rows, depth, p.round, out, width * depth);
  Pair(p, out, CeilDiv(rows, width), depth, width);
}

// Weights whose rows are the product's columns, panel by panel: [cols, depth] is decoded and transposed.
void PackWeightRows(const Product& p, int64_t col, int64_t cols, int64_t k, int64_t depth, const Panels& panels) {
  const WeightView& w = *p.right.weight;
  const int width = p.kernels->cols;
  const bool direct = p.kernels->pack_4bit != nullptr && CanPack4Bit(w, k, depth);
  for (int64_t first = 0; first < cols; first += width) {
    float* out = panels.right + first * depth;
    if (direct) {
      p.kernels->pack_4bit(w, col + first, k, depth, p.round, out);
      continue;
    }
    const int64_t count = std::min<int64_t>(width, cols - first);
    for (int64_t c = 0; c < count; ++c) DecodeRow(w, col + first + c, k, depth, panels.decoded + c * depth);
    p.kernels->pack_right_rows(panels.decoded, depth, count, depth, p.round, out, 0);
  }
}

// Weights whose rows are inner indices: long pieces of rows are decoded, then cut into panels.
void PackWeightCols(const Product& p, int64_t col, int64_t cols, int64_t k, int64_t depth, const Panels& panels) {
  const WeightView& w = *p.right.weight;
  const int width = p.kernels->cols;
  const int64_t step = kMaxDecoded / kMaxRightCols;
  for (int64_t i = 0; i < depth; i += step) {
    const int64_t rows = std::min(step, depth - i);
    for (int64_t r = 0; r < rows; ++r) DecodeRow(w, k + i + r, col, cols, panels.decoded + r * cols);
    p.kernels->pack_right_cols(panels.decoded, cols, cols, rows, p.round, panels.right + i * width, width * depth);
  }
}

// Columns col .. col + cols - 1 into panels one behind the other from panels.right on.
void PackRight(const Product& p, int64_t col, int64_t cols, int64_t k, int64_t depth, const Panels& panels) {
  const int width = p.kernels->cols;
  const MatMulOperand& right = p.right;
  if (right.data == nullptr) {
    right.inner_first ? PackWeightCols(p, col, cols, k, depth, panels) : PackWeightRows(p, col, cols, k, depth, panels);
  } else {
    const float* source = right.data + (right.inner_first ? k * right.stride + col : col * right.stride + k);
    const auto pack = right.inner_first ? p.kernels->pack_right_cols : p.kernels->pack_right_rows;
    pack(source, right.stride, cols, depth, p.round, panels.right, width * depth);
  }
  Pair(p, panels.right, CeilDiv(cols, width), depth, width);
}

// Packed rows times packed columns, which stand at (row, col) of the result.
void MultiplyBlocks(const Product& p, int64_t row, int64_t rows, int64_t col, int64_t cols, int64_t k, int64_t depth,
                    const float* left, const float* right) {
  const MatMulKernels& kernels = *p.kernels;
  const int64_t steps = kernels.pair != nullptr ? CeilDiv(depth, 2) : depth;
  MatMulTile tile = {nullptr, p.y.stride, 0, p.options.scale, k > 0 || p.options.accumulate};
  int64_t c = 0;
  if (rows <= MatMulKernels::kMaxWideRows) {
    for (; c + kernels.cols < cols; c += 2 * kernels.cols) {
      tile.y = p.y.row(row) + col + c;
      tile.count = std::min<int64_t>(2 * kernels.cols, cols - c);
      kernels.multiply_wide[rows - 1](steps, left, right + c * depth, kernels.cols * depth, tile);
    }
  }
  for (; c < cols; c += kernels.cols) {
    tile.count = std::min<int64_t>(kernels.cols, cols - c);
    for (int64_t r = 0; r < rows; r += kernels.rows) {
      tile.y = p.y.row(row + r) + col + c;
      const int64_t count = std::min<int64_t>(kernels.rows, rows - r);
      kernels.multiply[count - 1](steps, left + r * depth, right + c * depth, tile);
    }
  }
}

void MultiplyTask(const Product& p, int64_t row, int64_t rows, int64_t col, int64_t cols, const Panels& panels) {
  const int64_t left_rows = kMaxLeftRows / p.kernels->rows * p.kernels->rows;
  // Weights that are transposed go panel by panel, used while they are in the first-level cache; two at a time where
  // the kernel takes two.
  const int64_t group = p.right.inner_first ? cols : p.kernels->cols * (rows <= MatMulKernels::kMaxWideRows ? 2 : 1);
  for (int64_t k = 0; k < p.inner; k += kMatMulInnerBlock) {
    const int64_t depth = std::min(kMatMulInnerBlock, p.inner - k);
    for (int64_t r = 0; r < rows; r += left_rows) {
      const int64_t block_rows = std::min(left_rows, rows - r);
      PackLeft(p, row + r, block_rows, k, depth, panels.left);
      for (int64_t c = 0; c < cols; c += group) {
        const int64_t block_cols = std::min(group, cols - c);
        // Panels are kept only when another block of rows follows.
        Panels at = panels;
        at.right += rows > left_rows ? c * depth : 0;
        if (r == 0) PackRight(p, col + c, block_cols, k, depth, at);
        MultiplyBlocks(p, row + r, block_rows, col + c, block_cols, k, depth, at.left, at.right);
      }
    }
  }
}

// Where part i of `parts` equal parts of `count` panels of `width` begins.
int64_t PartBegin(int64_t i, int64_t parts, int64_t count, int64_t width, int64_t total) {
  return std::min(total, count * i / parts * width);
}

void Multiply(const Product& p, Scratch scratch) {
  const int64_t col_panels = CeilDiv(p.cols, p.kernels->cols);
  const int64_t row_panels = CeilDiv(p.rows, p.kernels->rows);
  const int64_t threads = p.rows * p.cols * p.inner < kMinParallelWork ? 1 : NumThreads();
  // Tasks are columns first: each then decodes its weights once. Rows are split where columns are too few.
  int64_t col_parts = CeilDiv(col_panels, kMaxRightCols / p.kernels->cols);
  col_parts = std::min(CeilDiv(col_parts, threads) * threads, CeilDiv(col_panels, 2));
  const int64_t row_parts = std::min(CeilDiv(threads, col_parts), row_panels);
  ParallelFor(row_parts * col_parts, [&](int64_t task, int thread) {
    float* base = static_cast<float*>(scratch.data) + thread * kThreadFloats;
    const Panels panels = {base, base + kLeftFloats, base + kLeftFloats + kRightFloats};
    const int64_t i = task / col_parts, j = task % col_parts;
    const int64_t row = PartBegin(i, row_parts, row_panels, p.kernels->rows, p.rows);
    const int64_t row_end = PartBegin(i + 1, row_parts, row_panels, p.kernels->rows, p.rows);
    const int64_t col = PartBegin(j, col_parts, col_panels, p.kernels->cols, p.cols);
    const int64_t col_end = PartBegin(j + 1, col_parts, col_panels, p.kernels->cols, p.cols);
    MultiplyTask(p, row, row_end - row, col, col_end - col, panels);
  });
}

bool OnTiles(Compute compute) {
  return compute == Compute::kBF16 && Bf16Kernels() == nullptr && ActiveBf16Path() == Bf16Path::kTiles;
}

void Run(const MatMulProduct& p, Scratch scratch) {
  if (p.rows == 0 || p.cols == 0) return;
  if (p.inner == 0) {
    for (int64_t r = 0; r < p.rows && !p.options.accumulate; ++r) std::fill_n(p.y.row(r), p.cols, 0.0f);
    return;
  }
  if (OnTiles(p.options.compute)) return MultiplyAmx(p, scratch);
  const bool bf16 = p.options.compute == Compute::kBF16;
  const MatMulKernels* kernels = bf16 ? Bf16Kernels() : nullptr;
  CHECK_GE(scratch.bytes, MatMulScratchBytes());
  Multiply({p, bf16, kernels != nullptr ? kernels : &F32Kernels()}, scratch);
}

MatMulOperand WeightOperand(const WeightView& w, bool inner_first) {
  if (w.format != Format::kF32) return {nullptr, 0, inner_first, &w};
  return {static_cast<const float*>(w.data), w.cols, inner_first, nullptr};
}

}  // namespace

int64_t MatMulScratchBytes() { return NumThreads() * kThreadFloats * static_cast<int64_t>(sizeof(float)); }

int64_t MatMulScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out) {
  if (!OnTiles(compute)) return MatMulScratchBytes();
  return std::max({AmxScratchBytes(rows, out, in), AmxScratchBytes(rows, in, out), AmxScratchBytes(out, in, rows)});
}

void MatMulNT(ConstMatrix x, const WeightView& w, Matrix y, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(x.cols, w.cols);
  CHECK_EQ(x.rows, y.rows);
  CHECK_EQ(w.rows, y.cols);
  const MatMulOperand left = {x.data, x.stride, false, nullptr};
  Run({y.rows, y.cols, x.cols, left, WeightOperand(w, false), y, options}, scratch);
}

void MatMulNN(ConstMatrix dy, const WeightView& w, Matrix dx, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(dy.cols, w.rows);
  CHECK_EQ(dy.rows, dx.rows);
  CHECK_EQ(w.cols, dx.cols);
  const MatMulOperand left = {dy.data, dy.stride, false, nullptr};
  Run({dx.rows, dx.cols, dy.cols, left, WeightOperand(w, true), dx, options}, scratch);
}

void MatMulTN(ConstMatrix dy, ConstMatrix x, Matrix dw, const MatMulOptions& options, Scratch scratch) {
  CHECK_EQ(dy.rows, x.rows);
  CHECK_EQ(dy.cols, dw.rows);
  CHECK_EQ(x.cols, dw.cols);
  const MatMulOperand left = {dy.data, dy.stride, true, nullptr};
  const MatMulOperand right = {x.data, x.stride, true, nullptr};
  Run({dw.rows, dw.cols, dy.rows, left, right, dw, options}, scratch);
}

}  // namespace thimble
