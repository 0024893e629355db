// Blocking: for blocks of rows and of the inner dimension, the left operand is packed once, by all threads. A task is
// then a range of columns: group by group (in the second-level cache) it packs the right operand into panels and takes
// the left panels one by one (in the first-level cache) past all of them.
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

// Rows of a block of the left operand and columns of a group; with kMatMulInnerBlock floats a row, 512 and 384 KiB.
constexpr int64_t kMaxLeftRows = 512;
constexpr int64_t kMaxRightCols = 384;
// Decoded weights on their way into panels.
constexpr int64_t kMaxDecoded = 48 * kMatMulInnerBlock;

// Multiples of the widths of every level's panels: what is planned holds on any processor.
constexpr int64_t kRowStep = 24;
constexpr int64_t kColStep = 48;
// Below this many multiplications starting a second thread costs more than it gains.
constexpr int64_t kMinParallelWork = 1 << 17;

struct Product : MatMulProduct {
  bool round;
  const MatMulKernels* kernels;
};

// One thread's scratch.
struct Panels {
  float* right;
  float* decoded;
};

// Rows [row, row + rows) and inner indices [k, k + depth) of the product, the left ones packed: slice by slice of
// kMatMulInnerBlock inner indices, panel by panel.
struct Block {
  const Product& p;
  int64_t row, rows, k, depth;
  float* left;

  int64_t panels() const { return (rows + p.kernels->rows - 1) / p.kernels->rows; }
  int64_t SliceDepth(int64_t at) const { return std::min(kMatMulInnerBlock, depth - at); }
  // Where the slice of inner indices [k + at, ...) begins.
  float* Slice(int64_t at) const { return left + at * panels() * p.kernels->rows; }
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t RoundUp(int64_t a, int64_t step) { return CeilDiv(a, step) * step; }

// The scratch: left panels, then for each thread right panels and decoded weights.
struct Layout {
  static constexpr int64_t kMaxLeftFloats = kMaxLeftRows * kMatMulInnerBlock;

  Layout(int64_t rows, int64_t cols, int64_t inner)
      : left_floats(std::min(kMaxLeftFloats, RoundUp(rows, kRowStep) * RoundUp(inner, kMatMulInnerBlock))),
        right_floats(std::min(kMaxRightCols, RoundUp(cols, kColStep)) * std::min(kMatMulInnerBlock, inner)),
        thread_floats(RoundUp(right_floats, 16) + kMaxDecoded) {}
  int64_t bytes() const { return (left_floats + NumThreads() * thread_floats) * static_cast<int64_t>(sizeof(float)); }

  int64_t left_floats, right_floats, thread_floats;
};

void Pair(const Product& p, float* panel, int64_t panels, int64_t depth, int width) {
  for (int64_t i = 0; i < panels && p.kernels->pair != nullptr; ++i) {
    p.kernels->pair(panel + i * depth * width, depth, width);
  }
}

// Rows [first, last) of a block, which begin a panel, and a slice.
void PackLeftRows(const Block& b, int64_t first, int64_t last, int64_t at) {
  const MatMulOperand& left = b.p.left;
  const int width = b.p.kernels->rows;
  const int64_t row = b.row + first, k = b.k + at, depth = b.SliceDepth(at);
  const float* source = left.data + (left.inner_first ? k * left.stride + row : row * left.stride + k);
  const auto pack = left.inner_first ? b.p.kernels->pack_left_cols : b.p.kernels->pack_left_rows;
  float* out = b.Slice(at) + first * depth;
  pack(source, left.stride, last - first, depth, b.p.round, out, width * depth);
  Pair(b.p, out, CeilDiv(last - first, width), depth, width);
}

void PackLeft(const Block& b, bool parallel) {
  const int64_t part = 4 * b.p.kernels->rows, parts = CeilDiv(b.rows, part);
  const auto pack = [&](int64_t i, int) {
    const int64_t first = i % parts * part;
    PackLeftRows(b, first, std::min(first + part, b.rows), i / parts * kMatMulInnerBlock);
  };
  const int64_t count = parts * CeilDiv(b.depth, kMatMulInnerBlock);
  if (parallel) return ParallelFor(count, pack);
  for (int64_t i = 0; i < count; ++i) pack(i, 0);
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

// Columns [col, col_end) of a block.
struct Task {
  int64_t first, last;  // left panels
  int64_t col, col_end;
};

// A slice's left panels times the packed columns col .. col + cols - 1.
void MultiplyGroup(const Block& b, const Task& task, int64_t at, int64_t col, int64_t cols, const float* right) {
  const Product& p = b.p;
  const MatMulKernels& kernels = *p.kernels;
  const int64_t depth = b.SliceDepth(at), steps = kernels.pair != nullptr ? CeilDiv(depth, 2) : depth;
  MatMulTile tile = {nullptr, p.y.stride, 0, p.options.scale, b.k + at > 0 || p.options.accumulate};
  for (int64_t r = task.first * kernels.rows; r < std::min(task.last * kernels.rows, b.rows); r += kernels.rows) {
    const float* left = b.Slice(at) + r * depth;
    const int64_t rows = std::min<int64_t>(kernels.rows, b.rows - r);
    float* y = p.y.row(b.row + r) + col;
    int64_t c = 0;
    for (; rows <= MatMulKernels::kMaxWideRows && c + kernels.cols < cols; c += 2 * kernels.cols) {
      tile.y = y + c;
      tile.count = std::min<int64_t>(2 * kernels.cols, cols - c);
      kernels.multiply_wide[rows - 1](steps, left, right + c * depth, kernels.cols * depth, tile);
    }
    for (; c < cols; c += kernels.cols) {
      tile.y = y + c;
      tile.count = std::min<int64_t>(kernels.cols, cols - c);
      kernels.multiply[rows - 1](steps, left, right + c * depth, tile);
    }
  }
}

void MultiplyTask(const Block& b, const Task& task, const Panels& panels) {
  const int64_t width = b.p.kernels->cols, group = kMaxRightCols / width * width;
  for (int64_t at = 0; at < b.depth; at += kMatMulInnerBlock) {
    for (int64_t col = task.col; col < task.col_end; col += group) {
      const int64_t cols = std::min(group, task.col_end - col);
      PackRight(b.p, col, cols, b.k + at, b.SliceDepth(at), panels);
      MultiplyGroup(b, task, at, col, cols, panels.right);
    }
  }
}

void MultiplyBlock(const Block& b, bool parallel, const Layout& layout, float* thread_memory) {
  const int64_t threads = parallel ? NumThreads() : 1, width = b.p.kernels->cols;
  // Tasks are columns first: each then decodes its weights once. Rows are split where columns are too few.
  const int64_t col_panels = CeilDiv(b.p.cols, width), groups = CeilDiv(b.p.cols, kMaxRightCols);
  const int64_t col_parts = std::min(CeilDiv(groups, threads) * threads, CeilDiv(col_panels, 2));
  const int64_t row_parts = std::min(CeilDiv(threads, col_parts), b.panels());
  const auto run = [&](int64_t i, int thread) {
    float* base = thread_memory + thread * layout.thread_floats;
    const int64_t r = i / col_parts, c = i % col_parts;
    MultiplyTask(b,
                 {b.panels() * r / row_parts, b.panels() * (r + 1) / row_parts, col_panels * c / col_parts * width,
                  std::min(b.p.cols, col_panels * (c + 1) / col_parts * width)},
                 {base, base + layout.thread_floats - kMaxDecoded});
  };
  if (parallel) return ParallelFor(row_parts * col_parts, run);
  for (int64_t i = 0; i < row_parts * col_parts; ++i) run(i, 0);
}

void Multiply(const Product& p, Scratch scratch) {
  const Layout layout(p.rows, p.cols, p.inner);
  CHECK_GE(scratch.bytes, layout.bytes());
  float* left = static_cast<float*>(scratch.data);
  const int64_t width = p.kernels->rows, max_rows = kMaxLeftRows / width * width;
  const bool parallel = p.rows * p.cols * p.inner >= kMinParallelWork;
  for (int64_t row = 0; row < p.rows; row += max_rows) {
    const int64_t rows = std::min(max_rows, p.rows - row), padded = CeilDiv(rows, width) * width;
    // As many slices as fit: few rows have them all at once.
    const int64_t depth = Layout::kMaxLeftFloats / padded / kMatMulInnerBlock * kMatMulInnerBlock;
    for (int64_t k = 0; k < p.inner; k += depth) {
      const Block block = {p, row, rows, k, std::min(depth, p.inner - k), left};
      PackLeft(block, parallel);
      MultiplyBlock(block, parallel, layout, left + layout.left_floats);
    }
  }
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
  Multiply({p, bf16, kernels != nullptr ? kernels : &F32Kernels()}, scratch);
}

MatMulOperand WeightOperand(const WeightView& w, bool inner_first) {
  if (w.format != Format::kF32) return {nullptr, 0, inner_first, &w};
  return {static_cast<const float*>(w.data), w.cols, inner_first, nullptr};
}

}  // namespace

int64_t MatMulScratchBytes() {
  constexpr int64_t kLarge = 1 << 20;
  return Layout(kLarge, kLarge, kLarge).bytes();
}

int64_t MatMulScratchBytes(Compute compute, int64_t rows, int64_t in, int64_t out) {
  if (!OnTiles(compute)) {
    return std::max({Layout(rows, out, in).bytes(), Layout(rows, in, out).bytes(), Layout(out, in, rows).bytes()});
  }
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
