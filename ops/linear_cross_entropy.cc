// Cut cross-entropy. Vocabulary tiles run in order; within one, blocks of rows run in parallel, each row with its own
// running maximum and sum. A trained head's gradient takes a second parallel step over columns.
#include "ops/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "ops/amx_panel.h"
#include "ops/check.h"
#include "ops/head_tile_amx.h"
#include "ops/linear_cross_entropy_pass.h"
#include "ops/parallel.h"
#include "ops/scratch_carver.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_cross_entropy.cc"
#include "hwy/foreach_target.h"
// foreach_target.h must come before these.
#include "hwy/highway.h"
#include "ops/head_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// One row of logits of a tile, in place; `target` is its column in the tile or -1.
struct LogitRow {
  float* z;
  int64_t columns;  // of the tile; up to a whole panel z may be written
  int64_t target;
};

template <class D>
HWY_INLINE hn::Vec<D> Slope(D d, hn::Vec<D> z, float soft_cap) {
  const auto t = hn::Mul(z, hn::Set(d, 1 / soft_cap));
  return hn::NegMulAdd(t, t, hn::Set(d, 1.0f));
}
HWY_INLINE float SlopeAt(float z, float soft_cap) { return soft_cap > 0 ? 1 - z / soft_cap * (z / soft_cap) : 1; }

// Soft cap, then -infinity in the columns that are padding. Returns the maximum and adds up the logits.
HWY_INLINE float FinishLogits(const LogitRow& row, float soft_cap, float& sum) {
  const F32 d;
  const auto padding = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto max = padding, total = hn::Zero(d);
  for (int64_t c = 0; c < row.columns; c += kLanes) {
    auto z = hn::Load(d, row.z + c);
    if (soft_cap > 0) z = hn::Mul(hn::Set(d, soft_cap), Tanh(d, hn::Mul(z, hn::Set(d, 1 / soft_cap))));
    const auto mask = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, row.columns - c)));
    total = hn::Add(total, hn::IfThenElseZero(mask, z));
    z = hn::IfThenElse(mask, z, padding);
    max = hn::Max(max, z);
    hn::Store(z, d, row.z + c);
  }
  sum = hn::GetLane(hn::SumOfLanes(d, total));
  return hn::GetLane(hn::MaxOfLanes(d, max));
}

// Logits to exp(z - shift) * slope (what the product with C wants); returns the sum of exp(z - shift).
HWY_INLINE float ExponentiateRow(const LogitRow& row, float shift, float soft_cap, bool round_bf16) {
  const F32 d;
  auto sum = hn::Zero(d);
  for (int64_t c = 0; c < row.columns; c += kLanes) {
    const auto z = hn::Load(d, row.z + c);
    auto p = ExpNonPositive(d, hn::Sub(z, hn::Set(d, shift)));
    sum = hn::Add(sum, p);
    // Padding has p = 0 and an infinite slope.
    if (soft_cap > 0) p = hn::Mul(p, hn::Max(Slope(d, z, soft_cap), hn::Zero(d)));
    hn::Store(round_bf16 ? RoundToBF16(d, p) : p, d, row.z + c);
  }
  return hn::GetLane(hn::SumOfLanes(d, sum));
}

// The running softmax of one token. Returns whether the row's probabilities are to be multiplied with C.
HWY_INLINE bool OnlineRow(const Pass& pass, int64_t token, const LogitRow& row, float& sum) {
  const LinearCrossEntropyOptions& options = pass.options;
  const float alpha = options.label_smoothing;
  float total = 0;
  const float tile_max = FinishLogits(row, options.soft_cap, total);
  float &max = pass.lse[token], &weighted = pass.loss[token];
  if (alpha > 0) weighted += alpha / pass.head.rows * total;
  if (row.target >= 0) weighted += (1 - alpha) * row.z[row.target];
  const float new_max = std::max(max, tile_max);
  const bool fused = pass.kind == Kind::kFused;
  const float added = ExponentiateRow(row, new_max, fused ? options.soft_cap : 0, fused && pass.bf16());
  if (new_max != max && max != -std::numeric_limits<float>::infinity()) {
    const float rescale = std::exp(max - new_max);
    sum *= rescale;
    if (fused) {
      float* dh = pass.dh.row(token);
      for (int64_t i = 0; i < pass.dh.cols; ++i) dh[i] *= rescale;
    }
  }
  max = new_max;
  sum += added;
  // The sum only grows, so this bounds the softmax at the end from above.
  return fused && !(pass.filtered() && std::exp(tile_max - new_max) < options.filter_threshold * sum);
}

// dloss/dz of one token. Returns false, leaving the row undefined, where the filter drops it.
HWY_INLINE bool GradientRow(const Pass& pass, int64_t token, const LogitRow& row) {
  const F32 d;
  const LinearCrossEntropyOptions& options = pass.options;
  const float lse = pass.known_lse[token], extra = 2 * options.z_loss * lse;
  const float alpha = options.label_smoothing;
  float total = 0;
  const float target_z_raw = row.target >= 0 ? row.z[row.target] : 0;
  if (pass.filtered() && row.target >= 0) row.z[row.target] = -std::numeric_limits<float>::infinity();
  const float other_max = FinishLogits(row, options.soft_cap, total);
  float target_z = 0;
  if (row.target >= 0) {
    if (pass.filtered()) {
      target_z = options.soft_cap > 0 ? options.soft_cap * std::tanh(target_z_raw / options.soft_cap) : target_z_raw;
      row.z[row.target] = target_z;
    } else {
      target_z = row.z[row.target];
    }
  }
  if (pass.filtered()) {
    const float other = std::exp(other_max - lse), own = row.target >= 0 ? std::exp(target_z - lse) : 0;
    const float threshold = options.filter_threshold;
    const bool small = other < threshold && (row.target < 0 || std::abs(own - 1) < threshold);
    if (small && std::max(other, own) * std::abs(extra) < threshold) return false;
  }
  const float spread = pass.smoothing_apart() ? 0 : pass.scale * alpha / pass.head.rows;
  for (int64_t c = 0; c < row.columns; c += kLanes) {
    const auto z = hn::Load(d, row.z + c);
    const auto p = ExpNonPositive(d, hn::Sub(z, hn::Set(d, lse)));
    auto g = hn::MulSub(p, hn::Set(d, pass.scale * (1 + extra)), hn::Set(d, spread));
    if (options.soft_cap > 0) g = hn::Mul(g, Slope(d, z, options.soft_cap));
    hn::Store(g, d, row.z + c);
  }
  if (row.target >= 0) {
    const float weight = pass.smoothing_apart() ? 1 : 1 - alpha;
    row.z[row.target] -= pass.scale * weight * SlopeAt(target_z, options.soft_cap);
  }
  if (pass.bf16()) RoundToBF16(row.z, row.columns, row.z);
  return true;
}

// The same memory as panels of bf16.
AmxHeadTile InBF16(const HeadTile& tile, int64_t dim) {
  return {tile.begin, tile.rows, dim, reinterpret_cast<uint16_t*>(tile.turned),
          reinterpret_cast<uint16_t*>(tile.straight)};
}

// Rows [first, first + count) of the list, whose logits are z[0], z[1], ...
HWY_NOINLINE void RowBlock(const Pass& pass, const ScratchLayout& scratch, const HeadTile& tile, int64_t first,
                           int64_t count, float* logits, int32_t* active, float* rounded) {
  const float* h[kMaxRowBlock] = {};
  float *z[kMaxRowBlock] = {}, *dh[kMaxRowBlock];
  for (int64_t r = 0; r < count; ++r) {
    h[r] = pass.h.row(scratch.rows[first + r]);
    z[r] = logits + r * scratch.vocab_tile;
  }
  const bool on_tiles = pass.on_tiles();
  uint16_t* left = reinterpret_cast<uint16_t*>(rounded);
  if (on_tiles) {
    const AmxScope scope;
    AmxLogits(h, count, InBF16(tile, pass.h.cols), left, z);
  } else {
    LogitTile(h, count, pass.h.cols, tile, pass.bf16() ? rounded : nullptr, z);
  }
  const float* kept[kMaxRowBlock];
  int64_t multiplied = 0;
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = scratch.rows[first + r], target = pass.targets[token] - tile.begin;
    const LogitRow row = {z[r], tile.rows, target >= 0 && target < tile.rows ? target : -1};
    active[r] = pass.kind == Kind::kBackward ? GradientRow(pass, token, row)
                                             : OnlineRow(pass, token, row, scratch.sum[first + r]);
    if (!active[r]) continue;
    kept[multiplied] = z[r];
    dh[multiplied++] = pass.dh.row(token);
  }
  if (pass.kind == Kind::kForward) return;
  if (on_tiles) {
    const AmxScope scope;
    AddAmxHeadProduct(kept, multiplied, InBF16(tile, pass.h.cols), left, dh);
  } else {
    MultiplyPanels(RowOperand{kept}, multiplied, tile.rows, tile.straight, pass.h.cols, dh, Write::kAdd);
  }
}

// dhead rows of the tile += G^T h over the active rows of a super block, and the part of smoothing that was set apart.
void AddHeadGradient(const Pass& pass, const ScratchLayout& scratch, const HeadTile& tile, int64_t first,
                     int64_t count) {
  const float* h[kSuperBlock];
  int64_t rows = 0;
  for (int64_t r = 0; r < count; ++r) {
    if (!scratch.active[r]) continue;
    h[rows] = pass.h.row(scratch.rows[first + r]);
    if (rows != r) {
      std::memcpy(scratch.logits + rows * scratch.vocab_tile, scratch.logits + r * scratch.vocab_tile,
                  scratch.vocab_tile * sizeof(float));
    }
    ++rows;
  }
  float* dhead[kMaxVocabTile];
  for (int64_t v = 0; v < tile.rows; ++v) dhead[v] = pass.dhead.row(tile.begin + v);
  const float share = pass.scale * pass.options.label_smoothing;
  constexpr int64_t kColumns = 2 * kPanel;
  ParallelFor((pass.h.cols + kColumns - 1) / kColumns, [&](int64_t i, int thread) {
    const int64_t begin = i * kColumns, end = std::min(begin + kColumns, pass.h.cols);
    AddTransposedProduct(scratch.logits, scratch.vocab_tile, h, rows, tile.rows, begin, end,
                         scratch.threads + thread * kFloatsPerThread, dhead, pass.bf16());
    if (!pass.smoothing_apart()) return;
    for (int64_t v = 0; v < tile.rows && first == 0; ++v) {
      for (int64_t c = begin; c < end; ++c) dhead[v][c] -= share / pass.head.rows * scratch.hidden_sum[c];
    }
    for (int64_t r = first; r < first + count; ++r) {
      const int64_t token = scratch.rows[r], target = pass.targets[token] - tile.begin;
      if (target < 0 || target >= tile.rows) continue;
      for (int64_t c = begin; c < end; ++c) dhead[target][c] += share * pass.h(token, c);
    }
  });
}

// What is added to each row once all tiles are through.
HWY_NOINLINE void FinishRow(const Pass& pass, const ScratchLayout& scratch, int64_t r) {
  const LinearCrossEntropyOptions& options = pass.options;
  const int64_t token = scratch.rows[r];
  const float alpha = options.label_smoothing;
  float gain = 1, own = pass.scale * alpha;  // of the sum over tiles, and of the target's head row
  if (pass.kind != Kind::kBackward) {
    const float lse = pass.lse[token] + std::log(scratch.sum[r]), weighted = pass.loss[token];
    pass.lse[token] = lse;
    pass.loss[token] = lse - weighted + options.z_loss * lse * lse;
    if (pass.kind == Kind::kForward) return;
    gain = pass.scale * (1 + 2 * options.z_loss * lse) / scratch.sum[r];
    // With a soft cap there is no smoothing here, and `weighted` is the target's logit.
    own = -pass.scale * (1 - alpha) * SlopeAt(weighted, options.soft_cap);
  }
  constexpr int64_t kChunk = 512;
  float values[kChunk];
  float* dh = pass.dh.row(token);
  const float mean = pass.smoothing_apart() ? -pass.scale * alpha / pass.head.rows : 0;
  for (int64_t column = 0; column < pass.h.cols; column += kChunk) {
    const int64_t columns = std::min(kChunk, pass.h.cols - column);
    DecodeRow(pass.head, pass.targets[token], column, columns, values);
    if (pass.bf16()) RoundToBF16(values, columns, values);
    for (int64_t i = 0; i < columns; ++i) {
      float x = gain * dh[column + i] + own * values[i];
      if (mean != 0) x += mean * scratch.head_sum[column + i];
      dh[column + i] = x;
    }
  }
}

void Run(const Pass& pass, const ScratchLayout& scratch, int64_t rows) {
  const int64_t dim = pass.h.cols, vocab = pass.head.rows, threads = NumThreads();
  HeadRows head(pass.head, scratch.vocab_tile, scratch.fetched);
  for (int64_t v = 0; v < vocab && rows > 0; v += scratch.vocab_tile) {
    const HeadTile tile = {v, std::min(scratch.vocab_tile, vocab - v), scratch.turned,
                           pass.kind == Kind::kForward ? nullptr : scratch.straight};
    pass.on_tiles() ? PackAmxHeadTile(head.At(v), InBF16(tile, dim)) : PackHeadTile(head.At(v), tile, pass.bf16());
    if (pass.smoothing_apart()) AddHeadSum(tile, dim, scratch.head_sum);
    for (int64_t first = 0; first < rows; first += kSuperBlock) {
      const int64_t count = std::min(kSuperBlock, rows - first);
      // About four blocks a thread; the block's length changes no bit.
      const int64_t block =
          std::clamp<int64_t>(RoundUp((count + 4 * threads - 1) / (4 * threads), kTileRows), 24, kMaxRowBlock);
      ParallelFor((count + block - 1) / block, [&](int64_t i, int thread) {
        const int64_t begin = i * block;
        RowBlock(pass, scratch, tile, first + begin, std::min(block, count - begin),
                 scratch.logits + begin * scratch.vocab_tile, scratch.active + begin,
                 scratch.threads + thread * kFloatsPerThread);
      });
      if (pass.dhead.data != nullptr) AddHeadGradient(pass, scratch, tile, first, count);
    }
  }
  if (pass.kind == Kind::kBackward && !pass.smoothing_apart()) return;
  ParallelFor(rows, [&](int64_t r, int) { FinishRow(pass, scratch, r); });
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(Run);

// Outputs to their start values, the list of tokens that have a target, then all tiles.
void Start(const Pass& pass, Scratch memory) {
  CHECK_EQ(pass.h.cols, pass.head.cols);
  CHECK_EQ(pass.targets.size, pass.h.rows);
  ScratchCarver carver(memory);
  const ScratchLayout scratch(carver, pass.h.rows, pass.h.cols, HeadRows::FetchedRowBytes(pass.head));
  int64_t rows = 0;
  for (int64_t t = 0; t < pass.h.rows; ++t) {
    const bool has_target = pass.targets[t] != pass.options.ignore_index;
    if (pass.kind != Kind::kBackward) {
      pass.loss[t] = 0;
      pass.lse[t] = has_target ? -std::numeric_limits<float>::infinity() : 0;
    }
    if (pass.kind != Kind::kForward) std::fill_n(pass.dh.row(t), pass.dh.cols, 0.0f);
    if (!has_target) continue;
    CHECK(pass.targets[t] >= 0 && pass.targets[t] < pass.head.rows) << "target " << pass.targets[t];
    scratch.sum[rows] = 0;
    scratch.rows[rows++] = static_cast<int32_t>(t);
  }
  if (pass.smoothing_apart()) {
    const int64_t width = (pass.h.cols + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
    std::fill_n(scratch.head_sum, width, 0.0f);
    std::fill_n(scratch.hidden_sum, width, 0.0f);
    for (int64_t r = 0; r < rows; ++r) {
      const float* h = pass.h.row(scratch.rows[r]);
      for (int64_t i = 0; i < pass.h.cols; ++i) scratch.hidden_sum[i] += h[i];
    }
  }
  HWY_DYNAMIC_DISPATCH(Run)(pass, scratch, rows);
}

}  // namespace
int64_t LinearCrossEntropyScratchBytes(int64_t tokens, int64_t hidden_dim, const LinearCrossEntropyOptions&,
                                       int64_t fetched_row_bytes) {
  ScratchCarver carver;
  ScratchLayout(carver, tokens, hidden_dim, fetched_row_bytes);
  return carver.used();
}

void LinearCrossEntropyForward(ConstMatrix h, const WeightView& head, ConstInts targets,
                               const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Scratch scratch) {
  Start({Kind::kForward, h, head, targets, options, 0, loss, lse, {}, {}, {}}, scratch);
}

void LinearCrossEntropyBackward(ConstMatrix h, const WeightView& head, ConstInts targets, ConstVector lse,
                                float grad_scale, const LinearCrossEntropyOptions& options, Matrix dh, Matrix dhead,
                                Scratch scratch) {
  Start({Kind::kBackward, h, head, targets, options, grad_scale, {}, {}, lse, dh, dhead}, scratch);
}

void LinearCrossEntropyFused(ConstMatrix h, const WeightView& head, ConstInts targets, float grad_scale,
                             const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Matrix dh,
                             Scratch scratch) {
  // The filter of the z-loss needs the final lse; smoothing under a soft cap a factor for each entry.
  if ((options.filter_threshold > 0 && options.z_loss > 0) || (options.soft_cap > 0 && options.label_smoothing > 0)) {
    LinearCrossEntropyForward(h, head, targets, options, loss, lse, scratch);
    LinearCrossEntropyBackward(h, head, targets, lse, grad_scale, options, dh, Matrix(), scratch);
    return;
  }
  Start({Kind::kFused, h, head, targets, options, grad_scale, loss, lse, {}, dh, {}}, scratch);
}

}  // namespace thimble
#endif  // HWY_ONCE
