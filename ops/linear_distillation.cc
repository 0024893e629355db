// Distillation of a head. Rows go through all vocabulary tiles in chunks; within a tile, blocks of rows run in
// parallel, each row with running maxima and sums. A trained head's gradient takes a second parallel step over columns.
#include "ops/linear_distillation.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/scratch_carver.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_distillation.cc"
#include "hwy/foreach_target.h"
// foreach_target.h must come before these.
#include "hwy/highway.h"
#include "ops/head_tile-inl.h"

#ifndef THIMBLE_OPS_LINEAR_DISTILLATION_CC_ONCE_
#define THIMBLE_OPS_LINEAR_DISTILLATION_CC_ONCE_
namespace thimble {
namespace {

constexpr int64_t kWidestPanel = 32;         // of any CPU level
constexpr int64_t kTileBytes = 1310720;      // of the packed forms of both head tiles
constexpr int64_t kMaxVocabTile = 128;       // one depth block of the product P C
constexpr int64_t kRowsAtOnce = 4096;        // of a pass over both heads
constexpr int64_t kSuperBlock = 512;         // rows whose logits of one vocabulary tile exist at a time
constexpr int64_t kRowBlock = 48;            // rows of one task
constexpr int64_t kFloatsPerThread = 18432;  // kRowBlock x (teacher's logits, 256 rounded states), kSuperBlock x panel

struct Running {
  double sum = 0;  // of exp(x - max)
  float max = -std::numeric_limits<float>::infinity();
};

struct RowState {
  Running q, p, plain;              // plain: of the student's logits without temperature
  double forward = 0, reverse = 0;  // sums of exp(x_p - max_p) (x_p - x_q), and the other way round
  float target = 0;                 // its logit
};

int64_t Padded(int64_t dim) { return (dim + kWidestPanel - 1) / kWidestPanel * kWidestPanel; }

struct ScratchLayout {
  int64_t vocab_tile;
  int32_t* rows;  // tokens of the chunk, which all have a target
  RowState* states;
  float *turned, *straight, *turned_p;
  char *fetched, *fetched_p;  // where heads are read through readers
  float* logits;              // [kSuperBlock][vocab_tile]
  float* threads;

  ScratchLayout(ScratchCarver& carver, const WeightView& q, const WeightView& p) {
    const int64_t width = 2 * Padded(q.cols) + Padded(p.cols);
    const int64_t fits = kTileBytes / (4 * width) / kWidestPanel * kWidestPanel;
    vocab_tile = std::clamp(fits, kWidestPanel, kMaxVocabTile);
    rows = carver.Take<int32_t>(kRowsAtOnce);
    states = carver.Take<RowState>(kRowsAtOnce);
    turned = carver.Take<float>(vocab_tile * Padded(q.cols));
    straight = carver.Take<float>(vocab_tile * Padded(q.cols));
    turned_p = carver.Take<float>(vocab_tile * Padded(p.cols));
    fetched = carver.Take<char>(HeadRows::BufferBytes(vocab_tile, HeadRows::FetchedRowBytes(q)));
    fetched_p = carver.Take<char>(HeadRows::BufferBytes(vocab_tile, HeadRows::FetchedRowBytes(p)));
    logits = carver.Take<float>(kSuperBlock * vocab_tile);
    threads = carver.Take<float>(NumThreads() * kFloatsPerThread);
  }
};

// A row of the statistics.
enum Stat : uint8_t { kLsePlain, kLseQ, kLseP, kReverseKL };

struct Pass {
  const DistillationInputs& in;
  const LinearDistillationOptions& options;
  bool backward;
  float scale;
  Vector loss, divergence;
  Matrix stats;  // written by the forward pass, read by the backward pass
  Matrix dh, dhead;

  bool bf16() const { return options.compute == Compute::kBF16; }
  bool tempered() const { return options.temperature != 1; }
};

// How much of either direction is in the divergence.
float ForwardShare(DivergenceDirection direction) {
  if (direction == DivergenceDirection::kSymmetric) return 0.5f;
  return direction == DivergenceDirection::kForward ? 1 : 0;
}

}  // namespace
}  // namespace thimble
#endif  // THIMBLE_OPS_LINEAR_DISTILLATION_CC_ONCE_

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// Takes a new maximum; returns the factor of the sums so far.
HWY_INLINE double RaiseMax(Running& running, float tile_max) {
  if (!(tile_max > running.max)) return 1;
  const double rescale = std::exp(static_cast<double>(running.max) - tile_max);
  running.max = tile_max;
  running.sum *= rescale;
  return rescale;
}

HWY_INLINE void AddTile(const Pass& pass, float* z_q, float* z_p, int64_t columns, int64_t target, RowState& row) {
  const F32 d;
  const float inverse = 1 / pass.options.temperature;
  const float max_q = CapLogits(z_q, columns, pass.options.soft_cap);
  const float max_p = CapLogits(z_p, columns, pass.options.teacher_soft_cap);
  row.reverse *= RaiseMax(row.q, max_q * inverse);
  row.forward *= RaiseMax(row.p, max_p * inverse);
  if (pass.tempered()) RaiseMax(row.plain, max_q);
  if (target >= 0 && target < columns) row.target = z_q[target];
  auto sum_q = hn::Zero(d), sum_p = sum_q, sum_plain = sum_q, forward = sum_q, reverse = sum_q;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, columns - c)));
    const auto logit = hn::Load(d, z_q + c);
    const auto x_q = hn::Mul(logit, hn::Set(d, inverse)), x_p = hn::Mul(hn::Load(d, z_p + c), hn::Set(d, inverse));
    const auto q = hn::IfThenElseZero(mask, ExpNonPositive(d, hn::Sub(x_q, hn::Set(d, row.q.max))));
    const auto p = hn::IfThenElseZero(mask, ExpNonPositive(d, hn::Sub(x_p, hn::Set(d, row.p.max))));
    sum_q = hn::Add(sum_q, q);
    sum_p = hn::Add(sum_p, p);
    forward = hn::MulAdd(p, hn::Sub(x_p, x_q), forward);
    reverse = hn::MulAdd(q, hn::Sub(x_q, x_p), reverse);
    if (!pass.tempered()) continue;
    const auto plain = ExpNonPositive(d, hn::Sub(logit, hn::Set(d, row.plain.max)));
    sum_plain = hn::Add(sum_plain, hn::IfThenElseZero(mask, plain));
  }
  row.q.sum += hn::GetLane(hn::SumOfLanes(d, sum_q));
  row.p.sum += hn::GetLane(hn::SumOfLanes(d, sum_p));
  row.plain.sum += hn::GetLane(hn::SumOfLanes(d, sum_plain));
  row.forward += hn::GetLane(hn::SumOfLanes(d, forward));
  row.reverse += hn::GetLane(hn::SumOfLanes(d, reverse));
}

// dloss/dz of one token, in place of the student's logits.
HWY_INLINE void GradientRow(const Pass& pass, const float* stats, float* z_q, float* z_p, int64_t columns,
                            int64_t target) {
  const F32 d;
  const LinearDistillationOptions& options = pass.options;
  const float inverse = 1 / options.temperature;
  CapLogits(z_q, columns, options.soft_cap);
  CapLogits(z_p, columns, options.teacher_soft_cap);
  const float own = pass.scale * (1 - options.weight);
  const float share = ForwardShare(options.direction), factor = pass.scale * options.weight * options.temperature;
  // The target's column behind the loop, with the slope that its logit has now.
  const float capped = target >= 0 && target < columns ? z_q[target] : 0;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const auto logit = hn::Load(d, z_q + c);
    const auto log_q = hn::Sub(hn::Mul(logit, hn::Set(d, inverse)), hn::Set(d, stats[kLseQ]));
    const auto log_p = hn::Sub(hn::Mul(hn::Load(d, z_p + c), hn::Set(d, inverse)), hn::Set(d, stats[kLseP]));
    const auto q = ExpNonPositive(d, log_q);
    auto g = hn::Zero(d);
    if (share > 0) g = hn::Mul(hn::Set(d, share), hn::Sub(q, ExpNonPositive(d, log_p)));
    if (share < 1) {
      const auto excess = hn::Sub(hn::Sub(log_q, log_p), hn::Set(d, stats[kReverseKL]));
      g = hn::MulAdd(hn::Mul(hn::Set(d, 1 - share), q), excess, g);
    }
    g = hn::Mul(g, hn::Set(d, factor));
    if (own != 0) {
      const auto s = pass.tempered() ? ExpNonPositive(d, hn::Sub(logit, hn::Set(d, stats[kLsePlain]))) : q;
      g = hn::MulAdd(hn::Set(d, own), s, g);
    }
    if (options.soft_cap > 0) {
      const auto t = hn::Mul(logit, hn::Set(d, 1 / options.soft_cap));
      g = hn::Mul(g, hn::NegMulAdd(t, t, hn::Set(d, 1.0f)));
    }
    hn::Store(g, d, z_q + c);
  }
  if (target >= 0 && target < columns) {
    const float t = options.soft_cap > 0 ? capped / options.soft_cap : 0;
    z_q[target] -= own * (1 - t * t);
  }
  if (pass.bf16()) RoundToBF16(z_q, columns, z_q);
}

// Rows [first, first + count) of the chunk; the student's logits go to `logits`.
HWY_NOINLINE void RowBlock(const Pass& pass, const ScratchLayout& scratch, const HeadTile& tile, const HeadTile& tile_p,
                           int64_t first, int64_t count, float* logits, float* thread) {
  const float *h_q[kRowBlock] = {}, *h_p[kRowBlock] = {};
  float *z_q[kRowBlock] = {}, *z_p[kRowBlock] = {}, *dh[kRowBlock] = {};
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = scratch.rows[first + r];
    h_q[r] = pass.in.h.row(token);
    h_p[r] = pass.in.teacher_h.row(token);
    z_q[r] = logits + r * scratch.vocab_tile;
    z_p[r] = thread + r * scratch.vocab_tile;
    if (pass.backward) dh[r] = pass.dh.row(token);
  }
  float* rounded = pass.bf16() ? thread + kRowBlock * kMaxVocabTile : nullptr;
  LogitTile(h_q, count, pass.in.h.cols, tile, rounded, z_q);
  LogitTile(h_p, count, pass.in.teacher_h.cols, tile_p, rounded, z_p);
  for (int64_t r = 0; r < count; ++r) {
    const int64_t token = scratch.rows[first + r], target = pass.in.targets[token] - tile.begin;
    if (pass.backward) {
      GradientRow(pass, pass.stats.row(token), z_q[r], z_p[r], tile.rows, target);
    } else {
      AddTile(pass, z_q[r], z_p[r], tile.rows, target, scratch.states[first + r]);
    }
  }
  if (pass.backward) {
    MultiplyPanels(RowOperand{z_q}, count, tile.rows, tile.straight, pass.in.h.cols, dh, Write::kAdd);
  }
}

// dhead rows of the tile += G^T h over a super block.
void AddHeadGradient(const Pass& pass, const ScratchLayout& scratch, const HeadTile& tile, int64_t first,
                     int64_t count) {
  const float* h[kSuperBlock];
  for (int64_t r = 0; r < count; ++r) h[r] = pass.in.h.row(scratch.rows[first + r]);
  float* dhead[kMaxVocabTile];
  for (int64_t v = 0; v < tile.rows; ++v) dhead[v] = pass.dhead.row(tile.begin + v);
  constexpr int64_t kColumns = 2 * kPanel;
  ParallelFor((pass.in.h.cols + kColumns - 1) / kColumns, [&](int64_t i, int thread) {
    const int64_t begin = i * kColumns, end = std::min(begin + kColumns, pass.in.h.cols);
    AddTransposedProduct(scratch.logits, scratch.vocab_tile, h, count, tile.rows, begin, end,
                         scratch.threads + thread * kFloatsPerThread, dhead, pass.bf16());
  });
}

// A chunk of rows through all tiles.
void Run(const Pass& pass, const ScratchLayout& scratch, int64_t rows) {
  const int64_t vocab = pass.in.head.rows, width = scratch.vocab_tile;
  HeadRows head(pass.in.head, width, scratch.fetched), head_p(pass.in.teacher_head, width, scratch.fetched_p);
  for (int64_t v = 0; v < vocab; v += width) {
    const int64_t count = std::min(width, vocab - v);
    const HeadTile tile = {v, count, scratch.turned, pass.backward ? scratch.straight : nullptr};
    const HeadTile tile_p = {v, count, scratch.turned_p, nullptr};
    PackHeadTile(head.At(v), tile, pass.bf16());
    PackHeadTile(head_p.At(v), tile_p, pass.bf16());
    for (int64_t first = 0; first < rows; first += kSuperBlock) {
      const int64_t block_rows = std::min(kSuperBlock, rows - first);
      ParallelFor((block_rows + kRowBlock - 1) / kRowBlock, [&](int64_t i, int thread) {
        const int64_t begin = i * kRowBlock;
        RowBlock(pass, scratch, tile, tile_p, first + begin, std::min(kRowBlock, block_rows - begin),
                 scratch.logits + begin * width, scratch.threads + thread * kFloatsPerThread);
      });
      if (pass.dhead.data != nullptr) AddHeadGradient(pass, scratch, tile, first, block_rows);
    }
  }
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace thimble
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace thimble {
namespace {

HWY_EXPORT(Run);

void FinishRow(const Pass& pass, const RowState& row, int64_t token) {
  const LinearDistillationOptions& options = pass.options;
  const double lse_q = row.q.max + std::log(row.q.sum), lse_p = row.p.max + std::log(row.p.sum);
  const double lse = pass.tempered() ? row.plain.max + std::log(row.plain.sum) : lse_q;
  // Both lse apart, so that equal models cancel exactly.
  const double forward = row.forward / row.p.sum - lse_p + lse_q, reverse = row.reverse / row.q.sum - lse_q + lse_p;
  const double share = ForwardShare(options.direction);
  // Rounding alone makes one negative; NaN stays.
  const double divergence = share * (forward < 0 ? 0 : forward) + (1 - share) * (reverse < 0 ? 0 : reverse);
  const double square = static_cast<double>(options.temperature) * options.temperature;
  pass.divergence[token] = static_cast<float>(divergence);
  pass.loss[token] =
      static_cast<float>((1.0 - options.weight) * (lse - row.target) + options.weight * square * divergence);
  float* stats = pass.stats.row(token);
  stats[kLsePlain] = static_cast<float>(lse);
  stats[kLseQ] = static_cast<float>(lse_q);
  stats[kLseP] = static_cast<float>(lse_p);
  stats[kReverseKL] = static_cast<float>(reverse);
}

void CheckShapes(const DistillationInputs& in) {
  CHECK_EQ(in.h.cols, in.head.cols);
  CHECK_EQ(in.teacher_h.cols, in.teacher_head.cols);
  CHECK_EQ(in.head.rows, in.teacher_head.rows);
  CHECK_EQ(in.h.rows, in.teacher_h.rows);
  CHECK_EQ(in.targets.size, in.h.rows);
}

// Chunks of tokens that have a target, one after another.
void RunChunks(const Pass& pass, Scratch memory) {
  CheckShapes(pass.in);
  ScratchCarver carver(memory);
  const ScratchLayout scratch(carver, pass.in.head, pass.in.teacher_head);
  int64_t rows = 0;
  const auto flush = [&] {
    if (rows == 0) return;
    if (!pass.backward) std::fill_n(scratch.states, rows, RowState());
    HWY_DYNAMIC_DISPATCH(Run)(pass, scratch, rows);
    for (int64_t r = 0; r < rows && !pass.backward; ++r) FinishRow(pass, scratch.states[r], scratch.rows[r]);
    rows = 0;
  };
  for (int64_t t = 0; t < pass.in.h.rows; ++t) {
    if (pass.backward) std::fill_n(pass.dh.row(t), pass.dh.cols, 0.0f);
    const int32_t target = pass.in.targets[t];
    if (target != pass.options.ignore_index) {
      CHECK(target >= 0 && target < pass.in.head.rows) << "target " << target;
      scratch.rows[rows++] = static_cast<int32_t>(t);
      if (rows == kRowsAtOnce) flush();
    } else if (!pass.backward) {
      pass.loss[t] = pass.divergence[t] = 0;
      std::fill_n(pass.stats.row(t), kDistillationStats, 0.0f);
    }
  }
  flush();
}

}  // namespace

int64_t LinearDistillationScratchBytes(const WeightView& head, const WeightView& teacher_head) {
  ScratchCarver carver;
  ScratchLayout(carver, head, teacher_head);
  return carver.used();
}

void LinearDistillationForward(const DistillationInputs& in, const LinearDistillationOptions& options, Vector loss,
                               Vector divergence, Matrix stats, Scratch scratch) {
  CHECK_EQ(stats.cols, kDistillationStats);
  RunChunks({in, options, false, 0, loss, divergence, stats, {}, {}}, scratch);
}

void LinearDistillationBackward(const DistillationInputs& in, ConstMatrix stats, float grad_scale,
                                const LinearDistillationOptions& options, Matrix dh, Matrix dhead, Scratch scratch) {
  CHECK_EQ(stats.cols, kDistillationStats);
  // Only read in this direction.
  const Matrix known(const_cast<float*>(stats.data), stats.rows, stats.cols, stats.stride);
  RunChunks({in, options, true, grad_scale, {}, {}, known, dh, dhead}, scratch);
}

}  // namespace thimble
#endif  // HWY_ONCE
