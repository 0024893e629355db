// Blocking: for blocks of rows and of the inner dimension, the left operand is rounded into panels once, by all
// threads. A task is then a block of columns: for slices of the inner dimension it packs the right operand panel by
// panel, and multiplies each with all left panels while it is in the first-level cache; sums stay in the second-level
// one. The next panel is packed piece by piece between products, where it fills the units that tiles leave idle.
#include "ops/matmul_amx.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "ops/amx_panel.h"
#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/scratch_buffer.h"

namespace thimble {
namespace {

constexpr int64_t kMaxRows = 512;  // of a block of the left operand
constexpr int64_t kSlice = 512;    // inner indices of a panel: 32 KiB
constexpr int64_t kMaxCols = 256;  // of a task
constexpr int64_t kRightPanel = kSlice * kAmxPanel;
// Elements of a result that no second-level cache holds for whoever reads it next.
constexpr int64_t kLargeResult = 1 << 18;
// Below this many multiplications starting a second thread costs more than it gains.
constexpr int64_t kMinParallelWork = 1 << 19;

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t Padded(int64_t count) { return CeilDiv(count, kAmxPanel) * kAmxPanel; }

// The scratch: left panels, then for each thread its sums and two right panels.
struct Layout {
  Layout(int64_t rows, int64_t cols, int64_t inner) {
    const int64_t block_rows = std::min(kMaxRows, Padded(rows)),
                  depth = std::min(kAmxInnerBlock, AmxPaddedDepth(inner));
    left_bytes = block_rows * depth * 2;
    sum_bytes = 4 * (depth > kSlice ? block_rows * std::min(kMaxCols, Padded(cols)) : 2 * kAmxSums);
    thread_bytes = sum_bytes + 2 * kRightPanel * 2;
  }
  int64_t left_bytes, sum_bytes, thread_bytes;
};

// Rows [row, row + rows) and inner indices [k, k + depth) of the product, the left ones packed.
struct Block {
  const MatMulProduct& p;
  int64_t row, rows, k, depth;
  const uint16_t* left;  // [slices][panels][steps of a slice][2 tiles]

  int64_t slices() const { return CeilDiv(depth, kSlice); }
  int64_t SliceDepth(int64_t slice) const { return std::min(kSlice, depth - slice * kSlice); }
  int64_t panels() const { return CeilDiv(rows, kAmxPanel); }
  int64_t PanelAt(int64_t slice, int64_t panel) const {
    return (slice * panels() * kSlice + panel * AmxPaddedDepth(SliceDepth(slice))) * kAmxPanel;
  }
};

void PackLeft(const Block& b, bool parallel, uint16_t* left) {
  const auto pack = [&](int64_t i, int) {
    const int64_t slice = i / b.panels(), panel = i % b.panels();
    PackAmxLeft(b.p.left, b.row + b.rows, b.row + panel * kAmxPanel, b.k + slice * kSlice, b.SliceDepth(slice),
                left + b.PanelAt(slice, panel));
  };
  const int64_t count = b.slices() * b.panels();
  if (parallel) return ParallelFor(count, pack);
  for (int64_t i = 0; i < count; ++i) pack(i, 0);
}

// The scratch of one thread.
struct ThreadPanels {
  float* sums;         // [column panels][row panels][kAmxSums]
  uint16_t* right[2];  // the panel in use and the next one
};

// Row panels [first, last) by columns [col, col_end).
struct Task {
  int64_t first, last, col, col_end;

  int64_t panels() const { return last - first; }
  int64_t col_panels() const { return CeilDiv(col_end - col, kAmxPanel); }
};

// Right panel number i of a task, counted slice by slice.
void StartPacking(const Block& b, const Task& task, int64_t i, uint16_t* out, AmxPacking* packing) {
  const int64_t slice = i / task.col_panels();
  packing->operand = &b.p.right;
  packing->lanes = b.p.cols;
  packing->lane = task.col + i % task.col_panels() * kAmxPanel;
  packing->k = b.k + slice * kSlice;
  packing->depth = b.SliceDepth(slice);
  packing->panel = out;
  packing->next = 0;
}

void MultiplyTask(const Block& b, const Task& task, const ThreadPanels& at) {
  const AmxScope tiles;
  const MatMulProduct& p = b.p;
  const bool past = p.rows * p.cols >= kLargeResult, add = b.k > 0 || p.options.accumulate;
  const int64_t slices = b.slices(), count = slices * task.col_panels(), rows_end = b.row + b.rows;
  AmxResult done;  // stored while the next product runs: its sums are in memory by then
  AmxPacking packing;
  for (int64_t i = 0; i < count; ++i) {
    if (i == 0) StartPacking(b, task, 0, at.right[0], &packing);
    PackAmxRight(&packing, packing.pieces());  // what products left of this panel
    const int64_t slice = i / task.col_panels(), j = i % task.col_panels();
    const int64_t steps = AmxPaddedDepth(b.SliceDepth(slice)) / kAmxStep;
    const int64_t col = task.col + j * kAmxPanel, cols = std::min(kAmxPanel, task.col_end - col);
    int64_t pieces = 0;
    if (i + 1 < count) {
      StartPacking(b, task, i + 1, at.right[(i + 1) % 2], &packing);
      pieces = CeilDiv(packing.pieces(), steps * task.panels());
    }
    for (int64_t m = task.first; m < task.last; ++m) {
      const int64_t row = b.row + m * kAmxPanel, rows = std::min(kAmxPanel, rows_end - row);
      // A single slice needs no sums beyond two pairs of panels.
      const int64_t pair = j * task.panels() + m - task.first;
      float* sums = at.sums + (slices > 1 ? pair : pair % 2) * kAmxSums;
      MultiplyAmxPanels({b.left + b.PanelAt(slice, m), at.right[i % 2], steps, rows, cols, slice > 0, sums}, done,
                        &packing, pieces);
      done.sums = nullptr;
      done.rows = 0;
      if (slice + 1 < slices) continue;
      done = {sums, p.y.row(row) + col, p.y.stride, rows, cols, p.options.scale, add, past};
    }
  }
  StoreAmxSums(done);
}

void MultiplyBlock(const Block& b, bool parallel, const Layout& layout, uint8_t* thread_memory) {
  const int64_t threads = parallel ? NumThreads() : 1, col_panels = CeilDiv(b.p.cols, kAmxPanel);
  // Tasks are columns first: each then decodes its weights once. Rows are split where columns are too few.
  int64_t col_parts = CeilDiv(col_panels, kMaxCols / kAmxPanel);
  col_parts = std::min(CeilDiv(col_parts, threads) * threads, col_panels);
  const int64_t row_parts = std::min(CeilDiv(threads, col_parts), b.panels());
  const auto run = [&](int64_t i, int thread) {
    uint8_t* base = thread_memory + thread * layout.thread_bytes;
    uint16_t* right = reinterpret_cast<uint16_t*>(base + layout.sum_bytes);
    const ThreadPanels at = {reinterpret_cast<float*>(base), {right, right + kRightPanel}};
    const int64_t r = i / col_parts, c = i % col_parts;
    MultiplyTask(b,
                 {b.panels() * r / row_parts, b.panels() * (r + 1) / row_parts, col_panels * c / col_parts * kAmxPanel,
                  std::min(b.p.cols, col_panels * (c + 1) / col_parts * kAmxPanel)},
                 at);
  };
  if (parallel) return ParallelFor(row_parts * col_parts, run);
  for (int64_t i = 0; i < row_parts * col_parts; ++i) run(i, 0);
}

}  // namespace

int64_t AmxScratchBytes(int64_t rows, int64_t cols, int64_t inner) {
  const Layout layout(rows, cols, inner);
  return layout.left_bytes + NumThreads() * layout.thread_bytes;
}

void MultiplyAmx(const MatMulProduct& p, Scratch scratch) {
  CHECK_GE(scratch.bytes, AmxScratchBytes(p.rows, p.cols, p.inner));
  CHECK(p.left.data != nullptr && p.rows > 0 && p.cols > 0 && p.inner > 0);
  const Layout layout(p.rows, p.cols, p.inner);
  uint8_t* memory = static_cast<uint8_t*>(scratch.data);
  uint16_t* left = reinterpret_cast<uint16_t*>(memory);
  const bool parallel = p.rows * p.cols * p.inner >= kMinParallelWork;
  // Sums over tokens are cut as those of f32 are: computed a tile of tokens at a time they are the same bits.
  const int64_t inner_block = p.left.inner_first ? kMatMulInnerBlock : kAmxInnerBlock;
  for (int64_t row = 0; row < p.rows; row += kMaxRows) {
    for (int64_t k = 0; k < p.inner; k += inner_block) {
      const Block block = {p, row, std::min(kMaxRows, p.rows - row), k, std::min(inner_block, p.inner - k), left};
      PackLeft(block, parallel, left);
      MultiplyBlock(block, parallel, layout, memory + layout.left_bytes);
    }
  }
}

bool AmxAgrees() {
  constexpr int64_t kRows = 35, kCols = 37, kInner = 43;
  uint32_t state = 1;
  const auto values = [&](int64_t count) {
    std::vector<float> result(count);
    for (float& value : result) {
      state = state * 1664525 + 1013904223;
      value = BF16ToFloat(FloatToBF16(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f));
    }
    return result;
  };
  const std::vector<float> x = values(kRows * kInner), w = values(kCols * kInner);
  std::vector<float> y(kRows * kCols, -1.0f);
  const int64_t bytes = AmxScratchBytes(kRows, kCols, kInner);
  const ScratchBuffer memory(bytes);
  const MatMulOperand left = {x.data(), kInner, false, nullptr}, right = {w.data(), kInner, false, nullptr};
  MultiplyAmx({kRows, kCols, kInner, left, right, {y.data(), kRows, kCols}, {}}, memory.view());
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    float sum = 0;
    for (int64_t k = 0; k < kInner; ++k) sum += x[i / kCols * kInner + k] * w[i % kCols * kInner + k];
    // kInner sums below kInner, each rounded to 2^-24 of itself in either order.
    if (!(std::abs(y[i] - sum) <= kInner * kInner * 0x1p-23f)) return false;
  }
  return true;
}

}  // namespace thimble
