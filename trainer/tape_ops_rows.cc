// Rows of a value as values of their own, so that what follows runs tile by tile.
#include <functional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "ops/elementwise.h"
#include "trainer/backward.h"
#include "trainer/tape_ops.h"
#include "trainer/tape_ops_common.h"

namespace thimble {
namespace {

// y = rows [begin, begin + rows of y) of x.
void AppendSlice(Tape* tape, ValueId x, int64_t begin, ValueId y,
                 std::function<void(Backward&, const Step&)> backward) {
  Step step;
  step.op = "slice_rows";
  step.inputs = {x};
  step.outputs = {y};
  step.run = [begin](const StepContext& c) { Copy(c.In(0).Rows(begin, c.Out(0).rows), c.Out(0)); };
  step.backward = std::move(backward);
  tape->Append(std::move(step));
}

// `whole` with these rows set, in its memory. Where `so_far` is kNoValue, the other rows hold nothing yet.
void AppendSet(Tape* tape, ValueId so_far, ValueId rows, int64_t begin, ValueId whole,
               std::function<void(Backward&, const Step&)> backward) {
  Step step;
  step.op = "set_rows";
  const bool first = so_far == kNoValue;
  // The whole stands first: when both are computed again, it is complete up to here before these rows are.
  if (!first) {
    step.inputs.push_back(so_far);
    step.in_place = {{0, 0}};
  }
  step.inputs.push_back(rows);
  step.outputs = {whole};
  step.run = [begin, first](const StepContext& c) {
    if (!first) CopyIfApart(c.In(0), c.Out(0));
    const ConstMatrix rows = c.In(first ? 0 : 1);
    Copy(rows, c.Out(0).Rows(begin, rows.rows));
  };
  step.backward = std::move(backward);
  tape->Append(std::move(step));
}

}  // namespace

ValueId RecordSliceRows(Tape* tape, ValueId x, int64_t begin, int64_t rows, const std::string& name) {
  const ValueId y = tape->Activation(name, rows, tape->value(x).cols);
  AppendSlice(tape, x, begin, y, [begin](Backward& b, const Step& s) {
    const ValueId x = s.inputs[0];
    const ValueId dx = b.NewGradient(x);
    AppendSet(&b.tape(), b.Gradient(x), b.Gradient(s.outputs[0]), begin, dx, nullptr);
    b.SetGradient(x, dx);
  });
  return y;
}

ValueId RecordSetRows(Tape* tape, ValueId so_far, ValueId rows, int64_t begin, int64_t total, const std::string& name) {
  const ValueId whole = tape->Activation(name, total, tape->value(rows).cols);
  AppendSet(tape, so_far, rows, begin, whole, [begin](Backward& b, const Step& s) {
    const ValueId dwhole = b.Gradient(s.outputs[0]);
    const ValueId rows = s.inputs.back();
    const ValueId drows = b.NewGradient(rows);
    AppendSlice(&b.tape(), dwhole, begin, drows, nullptr);
    b.AddGradient(rows, drows);
    // What these rows held before is overwritten, and no tile below reads that part of the gradient.
    if (s.inputs.size() > 1) b.SetGradient(s.inputs[0], dwhole);
  });
  return whole;
}

namespace {

// Where a piece lies in one of the wholes.
struct Block {
  int whole = 0;
  int64_t row = 0, col = 0;
};

ConstMatrix BlockOf(ConstMatrix whole, const Block& block, ConstMatrix piece) {
  return whole.Rows(block.row, piece.rows).Cols(block.col, piece.cols);
}

void AppendSplit(Tape* tape, std::vector<ValueId> wholes, std::vector<ValueId> pieces, const std::vector<Block>& blocks,
                 std::function<void(Backward&, const Step&)> backward) {
  Step step;
  step.op = "split";
  step.inputs = std::move(wholes);
  step.outputs = std::move(pieces);
  step.run = [blocks](const StepContext& c) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      const Matrix piece = c.Out(static_cast<int>(i));
      Copy(BlockOf(c.In(blocks[i].whole), blocks[i], piece), piece);
    }
  };
  step.backward = std::move(backward);
  tape->Append(std::move(step));
}

void AppendJoin(Tape* tape, std::vector<ValueId> pieces, ValueId whole, const std::vector<Block>& blocks,
                std::function<void(Backward&, const Step&)> backward) {
  Step step;
  step.op = "join";
  step.inputs = std::move(pieces);
  step.outputs = {whole};
  step.run = [blocks](const StepContext& c) {
    for (size_t i = 0; i < blocks.size(); ++i) {
      const ConstMatrix piece = c.In(static_cast<int>(i));
      Copy(piece, c.Out(0).Rows(blocks[i].row, piece.rows).Cols(blocks[i].col, piece.cols));
    }
  };
  step.backward = std::move(backward);
  tape->Append(std::move(step));
}

// All pieces pass a gradient, or none of their whole does.
std::vector<ValueId> RecordSplit(Tape* tape, const std::vector<ValueId>& wholes, std::vector<ValueId> pieces,
                                 const std::vector<Block>& blocks) {
  AppendSplit(tape, wholes, pieces, blocks, [blocks](Backward& b, const Step& s) {
    for (size_t w = 0; w < s.inputs.size(); ++w) {
      if (!b.Needs(s.inputs[w])) continue;
      std::vector<ValueId> gradients;
      std::vector<Block> own;
      for (size_t i = 0; i < blocks.size(); ++i) {
        if (blocks[i].whole != static_cast<int>(w)) continue;
        gradients.push_back(b.Gradient(s.outputs[i]));
        own.push_back(blocks[i]);
      }
      const ValueId dwhole = b.NewGradient(s.inputs[w]);
      AppendJoin(&b.tape(), gradients, dwhole, own, nullptr);
      b.AddGradient(s.inputs[w], dwhole);
    }
  });
  return pieces;
}

void RecordJoin(Tape* tape, const std::vector<ValueId>& pieces, ValueId whole, const std::vector<Block>& blocks) {
  AppendJoin(tape, pieces, whole, blocks, [blocks](Backward& b, const Step& s) {
    std::vector<ValueId> gradients;
    for (ValueId piece : s.inputs) gradients.push_back(b.NewGradient(piece));
    AppendSplit(&b.tape(), {b.Gradient(s.outputs[0])}, gradients, blocks, nullptr);
    for (size_t i = 0; i < gradients.size(); ++i) b.AddGradient(s.inputs[i], gradients[i]);
  });
}

}  // namespace

std::vector<ValueId> RecordSplitColumns(Tape* tape, const std::vector<ValueId>& xs, int64_t parts,
                                        const std::string& name) {
  std::vector<ValueId> pieces;
  std::vector<Block> blocks;
  for (size_t x = 0; x < xs.size(); ++x) {
    const int64_t rows = tape->value(xs[x]).rows;
    const int64_t cols = tape->value(xs[x]).cols / parts;
    for (int64_t p = 0; p < parts; ++p) {
      pieces.push_back(tape->Activation(absl::StrCat(name, ".", x, ".", p), rows, cols));
      blocks.push_back({static_cast<int>(x), 0, p * cols});
    }
  }
  return RecordSplit(tape, xs, std::move(pieces), blocks);
}

ValueId RecordJoinColumns(Tape* tape, const std::vector<ValueId>& pieces, const std::string& name) {
  if (pieces.size() == 1) return pieces[0];
  std::vector<Block> blocks;
  int64_t cols = 0;
  for (ValueId piece : pieces) {
    blocks.push_back({0, 0, cols});
    cols += tape->value(piece).cols;
  }
  const ValueId whole = tape->Activation(name, tape->value(pieces[0]).rows, cols);
  RecordJoin(tape, pieces, whole, blocks);
  return whole;
}

std::vector<ValueId> RecordSplitRows(Tape* tape, ValueId x, const std::vector<int64_t>& rows, const std::string& name) {
  std::vector<ValueId> pieces;
  std::vector<Block> blocks;
  int64_t row = 0;
  for (int64_t count : rows) {
    pieces.push_back(tape->Activation(absl::StrCat(name, ".", pieces.size()), count, tape->value(x).cols));
    blocks.push_back({0, row, 0});
    row += count;
  }
  return RecordSplit(tape, {x}, std::move(pieces), blocks);
}

ValueId RecordJoinRows(Tape* tape, const std::vector<ValueId>& pieces, const std::string& name) {
  std::vector<Block> blocks;
  int64_t rows = 0;
  for (ValueId piece : pieces) {
    blocks.push_back({0, rows, 0});
    rows += tape->value(piece).rows;
  }
  const ValueId whole = tape->Activation(name, rows, tape->value(pieces[0]).cols);
  RecordJoin(tape, pieces, whole, blocks);
  return whole;
}

}  // namespace thimble
