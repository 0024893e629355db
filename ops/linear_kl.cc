// Kullback-Leibler divergence of two heads. Vocabulary tiles of both heads run in order; within one, blocks of rows run
// in parallel, each row with running maxima and sums.
#include "ops/linear_kl.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/scratch_carver.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/linear_kl.cc"
#include "hwy/foreach_target.h"
// foreach_target.h must come before these.
#include "hwy/highway.h"
#include "ops/head_tile-inl.h"

#ifndef THIMBLE_OPS_LINEAR_KL_CC_ONCE_
#define THIMBLE_OPS_LINEAR_KL_CC_ONCE_
namespace thimble {
namespace {

constexpr int64_t kTileBytes = 1310720;  // of the packed tiles of both heads
constexpr int64_t kWidestPanel = 32;     // of any CPU level
constexpr int64_t kMaxVocabTile = 128;
constexpr int64_t kRowBlock = 48;

int64_t Padded(int64_t dim) { return (dim + kWidestPanel - 1) / kWidestPanel * kWidestPanel; }

// Of one model's logits so far.
struct Softmax {
  double sum = 0;  // of exp(z - max)
  float max = -std::numeric_limits<float>::infinity();
  int32_t top = 0;
};

struct RowState {
  Softmax p, q;
  double difference = 0;  // sum of exp(z_p - max_p) (z_p - z_q)
};

struct Model {
  ConstMatrix h;
  WeightView head;
  float soft_cap;
};

struct ScratchLayout {
  int64_t vocab_tile;
  float *turned_p, *turned_q;
  char *fetched_p, *fetched_q;  // where heads are read through readers
  RowState* rows;
  float* logits;  // [threads][2][kRowBlock][vocab_tile]

  ScratchLayout(ScratchCarver& carver, int64_t count, const WeightView& p, const WeightView& q) {
    const int64_t width = Padded(p.cols) + Padded(q.cols);
    const int64_t fits = kTileBytes / (4 * std::max<int64_t>(width, 1)) / kWidestPanel * kWidestPanel;
    vocab_tile = std::clamp(fits, kWidestPanel, kMaxVocabTile);
    fetched_p = carver.Take<char>(HeadRows::BufferBytes(vocab_tile, HeadRows::FetchedRowBytes(p)));
    fetched_q = carver.Take<char>(HeadRows::BufferBytes(vocab_tile, HeadRows::FetchedRowBytes(q)));
    turned_p = carver.Take<float>(vocab_tile * Padded(p.cols));
    turned_q = carver.Take<float>(vocab_tile * Padded(q.cols));
    rows = carver.Take<RowState>(count);
    logits = carver.Take<float>(NumThreads() * 2 * kRowBlock * vocab_tile);
  }
};

}  // namespace
}  // namespace thimble
#endif  // THIMBLE_OPS_LINEAR_KL_CC_ONCE_

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// Takes a new maximum; returns the factor of the sums so far.
HWY_INLINE double RaiseMax(Softmax& softmax, const float* z, int64_t columns, float tile_max, int64_t begin) {
  if (!(tile_max > softmax.max)) return 1;
  const double rescale = std::exp(static_cast<double>(softmax.max) - tile_max);
  softmax.max = tile_max;
  softmax.top = static_cast<int32_t>(begin + (std::find(z, z + columns, tile_max) - z));
  softmax.sum *= rescale;
  return rescale;
}

HWY_INLINE void AddTile(float* z_p, float* z_q, const HeadTile& tile, float cap_p, float cap_q, RowState& row) {
  const F32 d;
  const int64_t columns = tile.rows;
  const float max_p = CapLogits(z_p, columns, cap_p), max_q = CapLogits(z_q, columns, cap_q);
  row.difference *= RaiseMax(row.p, z_p, columns, max_p, tile.begin);
  RaiseMax(row.q, z_q, columns, max_q, tile.begin);
  auto sum_p = hn::Zero(d), sum_q = sum_p, difference = sum_p;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const auto mask = hn::FirstN(d, static_cast<size_t>(std::min(kLanes, columns - c)));
    const auto x_p = hn::Load(d, z_p + c), x_q = hn::Load(d, z_q + c);
    const auto p = hn::IfThenElseZero(mask, ExpNonPositive(d, hn::Sub(x_p, hn::Set(d, row.p.max))));
    const auto q = hn::IfThenElseZero(mask, ExpNonPositive(d, hn::Sub(x_q, hn::Set(d, row.q.max))));
    sum_p = hn::Add(sum_p, p);
    sum_q = hn::Add(sum_q, q);
    difference = hn::MulAdd(p, hn::Sub(x_p, x_q), difference);
  }
  row.p.sum += hn::GetLane(hn::SumOfLanes(d, sum_p));
  row.q.sum += hn::GetLane(hn::SumOfLanes(d, sum_q));
  row.difference += hn::GetLane(hn::SumOfLanes(d, difference));
}

HWY_NOINLINE void RowBlock(const Model& p, const Model& q, const HeadTile& tile_p, const HeadTile& tile_q,
                           int64_t first, int64_t count, int64_t stride, float* logits, RowState* rows) {
  const float *h_p[kRowBlock] = {}, *h_q[kRowBlock] = {};
  float *z_p[kRowBlock] = {}, *z_q[kRowBlock] = {};
  for (int64_t r = 0; r < count; ++r) {
    h_p[r] = p.h.row(first + r);
    h_q[r] = q.h.row(first + r);
    z_p[r] = logits + 2 * r * stride;
    z_q[r] = z_p[r] + stride;
  }
  LogitTile(h_p, count, p.h.cols, tile_p, nullptr, z_p);
  LogitTile(h_q, count, q.h.cols, tile_q, nullptr, z_q);
  for (int64_t r = 0; r < count; ++r) AddTile(z_p[r], z_q[r], tile_p, p.soft_cap, q.soft_cap, rows[first + r]);
}

void Run(const Model& p, const Model& q, const ScratchLayout& scratch) {
  const int64_t rows = p.h.rows, vocab = p.head.rows, width = scratch.vocab_tile;
  HeadRows head_p(p.head, width, scratch.fetched_p), head_q(q.head, width, scratch.fetched_q);
  for (int64_t v = 0; v < vocab && rows > 0; v += width) {
    const HeadTile tile_p = {v, std::min(width, vocab - v), scratch.turned_p, nullptr};
    const HeadTile tile_q = {v, tile_p.rows, scratch.turned_q, nullptr};
    PackHeadTile(head_p.At(v), tile_p, false);
    PackHeadTile(head_q.At(v), tile_q, false);
    ParallelFor((rows + kRowBlock - 1) / kRowBlock, [&](int64_t i, int thread) {
      const int64_t first = i * kRowBlock;
      RowBlock(p, q, tile_p, tile_q, first, std::min(kRowBlock, rows - first), width,
               scratch.logits + thread * 2 * kRowBlock * width, scratch.rows);
    });
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

}  // namespace

int64_t LinearKLScratchBytes(int64_t rows, const WeightView& head_p, const WeightView& head_q) {
  ScratchCarver carver;
  ScratchLayout(carver, rows, head_p, head_q);
  return carver.used();
}

void LinearKL(ConstMatrix h_p, const WeightView& head_p, ConstMatrix h_q, const WeightView& head_q, Vector kl,
              VectorView<int32_t> top_p, VectorView<int32_t> top_q, Scratch memory, float soft_cap_p,
              float soft_cap_q) {
  CHECK_EQ(head_p.rows, head_q.rows);
  CHECK_EQ(h_p.rows, h_q.rows);
  CHECK_EQ(h_p.cols, head_p.cols);
  CHECK_EQ(h_q.cols, head_q.cols);
  ScratchCarver carver(memory);
  const ScratchLayout scratch(carver, h_p.rows, head_p, head_q);
  std::fill_n(scratch.rows, h_p.rows, RowState());
  HWY_DYNAMIC_DISPATCH(Run)({h_p, head_p, soft_cap_p}, {h_q, head_q, soft_cap_q}, scratch);
  for (int64_t t = 0; t < h_p.rows; ++t) {
    const RowState& row = scratch.rows[t];
    // lse_p and lse_q apart, so that equal models cancel exactly.
    const double lse_p = row.p.max + std::log(row.p.sum), lse_q = row.q.max + std::log(row.q.sum);
    const double divergence = row.difference / row.p.sum - lse_p + lse_q;
    kl[t] = static_cast<float>(divergence < 0 ? 0 : divergence);  // NaN stays
    top_p[t] = row.p.top;
    top_q[t] = row.q.top;
  }
}

}  // namespace thimble
#endif  // HWY_ONCE
