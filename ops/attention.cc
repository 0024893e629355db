// Attention in tiles of query rows by keys with a running maximum and sum (FlashAttention).
//
// Key tiles are cut from the first key of a sample on, and a hidden pair contributes an exact 0 to sums that run in the
// order of the keys: this is why a row's bits depend on its sample alone.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "ops/attention_scratch.h"
#include "ops/check.h"
#include "ops/matmul_bf16.h"
#include "ops/parallel.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/attention.cc"
#include "hwy/foreach_target.h"
// foreach_target.h must come before these.
#include "hwy/highway.h"
#include "ops/attention_products-inl.h"

#ifndef THIMBLE_OPS_ATTENTION_CC_ONCE_
#define THIMBLE_OPS_ATTENTION_CC_ONCE_
namespace thimble {
namespace {

struct Inputs {
  ConstMatrix q, k, v;
  ConstInts starts;
  AttentionShape shape;

  int64_t group() const { return shape.num_heads / shape.num_kv_heads; }
  int64_t offset() const { return k.rows - q.rows; }
};

struct ForwardTask {
  Matrix out, lse;
};
struct BackwardTask {
  ConstMatrix lse, dout;
  const float* delta;  // [T, num_heads]
  Matrix dq, dk, dv;
};

// A block of query rows of one sample and of heads that share their keys; row r of a tile is query
// begin + r / heads, head first_head + r % heads, so that later rows see later keys.
struct QueryTile {
  int64_t begin, end;  // query rows
  int64_t first_head, heads;

  int64_t rows() const { return (end - begin) * heads; }
  int64_t query(int64_t r) const { return begin + r / heads; }
  int64_t head(int64_t r) const { return first_head + r % heads; }
};

}  // namespace
}  // namespace thimble
#endif  // THIMBLE_OPS_ATTENTION_CC_ONCE_

HWY_BEFORE_NAMESPACE();
namespace thimble {
namespace HWY_NAMESPACE {
namespace {

// Columns [begin, end) of a tile which one query sees.
struct Visible {
  int64_t begin, end;
};
HWY_INLINE Visible VisibleColumns(const Inputs& in, int64_t query, int64_t tile_begin) {
  const int64_t last = in.offset() + query;
  int64_t first = in.starts[query];
  if (in.shape.window > 0) first = std::max(first, last - in.shape.window + 1);
  return {std::max<int64_t>(first - tile_begin, 0), last + 1 - tile_begin};
}

template <class D>
HWY_INLINE hn::Mask<D> ColumnMask(D d, int64_t column, Visible visible) {
  const auto index = hn::Iota(d, static_cast<float>(column));
  return hn::And(hn::Ge(index, hn::Set(d, static_cast<float>(visible.begin))),
                 hn::Lt(index, hn::Set(d, static_cast<float>(visible.end))));
}

template <class D>
HWY_INLINE hn::Vec<D> CapScore(D d, hn::Vec<D> s, float soft_cap) {
  if (soft_cap <= 0) return s;
  return hn::Mul(hn::Set(d, soft_cap), Tanh(d, hn::Mul(s, hn::Set(d, 1 / soft_cap))));
}

// Scores to exp(score - maximum) for one row; the running maximum and sum, and the output so far, are brought along.
HWY_INLINE void SoftmaxRow(const AttentionShape& shape, float* HWY_RESTRICT s, int64_t columns, Visible visible,
                           float& max, float& sum, float* HWY_RESTRICT out) {
  const F32 d;
  const auto scale = hn::Set(d, shape.scale);
  const auto hidden = hn::Set(d, -std::numeric_limits<float>::infinity());
  auto tile_max = hidden;
  const bool whole = visible.begin == 0 && visible.end >= columns;
  for (int64_t c = 0; c < columns; c += kLanes) {
    auto x = CapScore(d, hn::Mul(hn::Load(d, s + c), scale), shape.soft_cap);
    if (!whole) x = hn::IfThenElse(ColumnMask(d, c, visible), x, hidden);
    hn::Store(x, d, s + c);
    tile_max = hn::Max(tile_max, x);
  }
  const float new_max = std::max(max, hn::GetLane(hn::MaxOfLanes(d, tile_max)));
  const auto shift = hn::Set(d, new_max);
  auto tile_sum = hn::Zero(d);
  for (int64_t c = 0; c < columns; c += kLanes) {
    const auto p = ExpNonPositive(d, hn::Sub(hn::Load(d, s + c), shift));
    hn::Store(p, d, s + c);
    tile_sum = hn::Add(tile_sum, p);
  }
  if (new_max != max && max != -std::numeric_limits<float>::infinity()) {
    const float rescale = std::exp(max - new_max);
    sum *= rescale;
    for (int64_t c = 0; c < shape.head_dim; ++c) out[c] *= rescale;
  }
  max = new_max;
  sum += hn::GetLane(hn::SumOfLanes(d, tile_sum));
}

template <class Products>
HWY_NOINLINE void ForwardTile(const Inputs& in, const QueryTile& tile, const ThreadScratch& scratch,
                              const ForwardTask& task) {
  const Products products(scratch);
  const int64_t dim = in.shape.head_dim, offset = in.offset(), rows = tile.rows();
  const int64_t kv = tile.first_head / in.group() * dim;
  const float* q[kMaxRows];
  float *out[kMaxRows], *scores[kMaxRows], max[kMaxRows], sum[kMaxRows];
  for (int64_t r = 0; r < rows; ++r) {
    q[r] = in.q.row(tile.query(r)) + tile.head(r) * dim;
    out[r] = task.out.row(tile.query(r)) + tile.head(r) * dim;
    scores[r] = scratch.p + r * kKeyTile;
    max[r] = -std::numeric_limits<float>::infinity();
    sum[r] = 0;
    std::fill_n(out[r], dim, 0.0f);
  }
  const int64_t start = in.starts[tile.begin], end = offset + tile.end, window = in.shape.window;
  int64_t key = start;
  if (window > 0) key += std::max<int64_t>(0, offset + tile.begin - window + 1 - start) / kKeyTile * kKeyTile;
  for (; key < end; key += kKeyTile) {
    const int64_t keys = std::min(kKeyTile, end - key), columns = RoundUp(keys, kPanel);
    const int64_t from = std::max(tile.begin, key - offset);
    const int64_t to = window > 0 ? std::min(tile.end, key + kKeyTile - 1 + window - offset) : tile.end;
    const int64_t first = (from - tile.begin) * tile.heads, count = (to - from) * tile.heads;
    products.Turn(in.k.row(key) + kv, in.k.stride, keys, dim, scratch.keys_turned);
    products.Multiply(q + first, count, dim, scratch.keys_turned, columns, scores + first, Write::kStore);
    for (int64_t r = first; r < first + count; ++r) {
      SoftmaxRow(in.shape, scores[r], columns, VisibleColumns(in, tile.query(r), key), max[r], sum[r], out[r]);
    }
    products.Pack(in.v.row(key) + kv, in.v.stride, keys, dim, scratch.values);
    products.Multiply(scores + first, count, keys, scratch.values, dim, out + first, Write::kAdd);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < dim; ++c) out[r][c] /= sum[r];
    task.lse(tile.query(r), tile.head(r)) = max[r] + std::log(sum[r]);
  }
}

template <class Products>
void ForwardWith(const Inputs& in, const ScratchLayout& scratch, const ForwardTask& task) {
  const int64_t heads = std::min(in.group(), kMaxRows), head_blocks = (in.group() + heads - 1) / heads;
  const int64_t queries = std::max<int64_t>(1, kMaxRows / heads);
  int64_t tiles = 0;
  for (int64_t i = 0; i < in.q.rows; ++tiles) {
    scratch.begin[tiles] = static_cast<int32_t>(i);
    const int64_t first = i;
    while (i < in.q.rows && i - first < queries && in.starts[i] == in.starts[first]) ++i;
    scratch.end[tiles] = static_cast<int32_t>(i);
  }
  const int64_t blocks = in.shape.num_kv_heads * head_blocks;
  // The last tiles see the most keys: first come the long tasks.
  ParallelFor(tiles * blocks, [&](int64_t i, int thread) {
    const int64_t t = tiles - 1 - i / blocks, kv = i % blocks / head_blocks, block = i % head_blocks;
    const int64_t first_head = kv * in.group() + block * heads;
    const QueryTile tile = {scratch.begin[t], scratch.end[t], first_head,
                            std::min(heads, (kv + 1) * in.group() - first_head)};
    ForwardTile<Products>(in, tile, scratch.OfThread(in.shape, thread), task);
  });
}

void Forward(const Inputs& in, const ScratchLayout& scratch, const ForwardTask& task) {
  OnTiles(in.shape.compute) ? ForwardWith<TileProducts>(in, scratch, task)
                            : ForwardWith<FloatProducts>(in, scratch, task);
}

// One row of S and dP to P and dS.
HWY_INLINE void GradientRow(const AttentionShape& shape, float lse, float delta, int64_t columns, Visible visible,
                            float* HWY_RESTRICT p, float* HWY_RESTRICT ds) {
  const F32 d;
  const auto scale = hn::Set(d, shape.scale), zero = hn::Zero(d);
  const bool whole = visible.begin == 0 && visible.end >= columns;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const auto s = CapScore(d, hn::Mul(hn::Load(d, p + c), scale), shape.soft_cap);
    // Rounding may leave the difference a little above 0, where ExpNonPositive is good as well.
    auto probability = ExpNonPositive(d, hn::Sub(s, hn::Set(d, lse)));
    auto gradient = hn::Mul(hn::Mul(probability, scale), hn::Sub(hn::Load(d, ds + c), hn::Set(d, delta)));
    if (shape.soft_cap > 0) {
      const auto t = hn::Mul(s, hn::Set(d, 1 / shape.soft_cap));
      gradient = hn::Mul(gradient, hn::NegMulAdd(t, t, hn::Set(d, 1.0f)));
    }
    if (!whole) {
      const auto mask = ColumnMask(d, c, visible);
      probability = hn::IfThenElse(mask, probability, zero);
      gradient = hn::IfThenElse(mask, gradient, zero);
    }
    hn::Store(probability, d, p + c);
    hn::Store(gradient, d, ds + c);
  }
}

// All heads of one key/value head for the keys [key, key_end) and the queries [query, query_end) of one sample.
template <class Products>
HWY_NOINLINE void BackwardTile(const Inputs& in, int64_t kv, int64_t key, int64_t key_end, int64_t query,
                               int64_t query_end, const ThreadScratch& scratch, const BackwardTask& task) {
  const Products products(scratch);
  const int64_t dim = in.shape.head_dim, keys = key_end - key, columns = RoundUp(keys, kPanel);
  if (in.shape.window > 0) query_end = std::min(query_end, key_end - 1 + in.shape.window);
  products.Turn(in.k.row(key) + kv * dim, in.k.stride, keys, dim, scratch.keys_turned);
  products.Turn(in.v.row(key) + kv * dim, in.v.stride, keys, dim, scratch.values_turned);
  products.Pack(in.k.row(key) + kv * dim, in.k.stride, keys, dim, scratch.keys);
  float *dk[kKeyTile], *dv[kKeyTile];
  for (int64_t j = 0; j < keys; ++j) {
    dk[j] = task.dk.row(key + j) + kv * dim;
    dv[j] = task.dv.row(key + j) + kv * dim;
  }
  const int64_t heads = std::min<int64_t>(in.group(), kMaxRows / kKeyTile), last_head = (kv + 1) * in.group();
  for (int64_t head = kv * in.group(); head < last_head; head += heads) {
    const QueryTile tile = {query, query_end, head, std::min(heads, last_head - head)};
    const int64_t rows = tile.rows();
    const float *q[kMaxRows], *dout[kMaxRows];
    float *dq[kMaxRows], *p[kMaxRows], *ds[kMaxRows];
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = tile.query(r), column = tile.head(r) * dim;
      q[r] = in.q.row(i) + column;
      dout[r] = task.dout.row(i) + column;
      dq[r] = task.dq.row(i) + column;
      p[r] = scratch.p + r * kKeyTile;
      ds[r] = scratch.ds + r * kKeyTile;
    }
    products.Multiply(q, rows, dim, scratch.keys_turned, columns, p, Write::kStore);
    products.Multiply(dout, rows, dim, scratch.values_turned, columns, ds, Write::kStore);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t i = tile.query(r), h = tile.head(r);
      GradientRow(in.shape, task.lse(i, h), task.delta[i * in.shape.num_heads + h], columns, VisibleColumns(in, i, key),
                  p[r], ds[r]);
    }
    products.Multiply(ds, rows, keys, scratch.keys, dim, dq, Write::kAdd);
    products.AddTransposed(p, rows, keys, dout, dim, dv);
    products.AddTransposed(ds, rows, keys, q, dim, dk);
  }
}

// Stage `distance` takes, for every key tile, the query tile that many tiles further on in its sample: no two tasks of
// a stage share a row of dq, dk or dv, and every row gathers its sums in the order of the stages.
template <class Products>
void BackwardWith(const Inputs& in, const ScratchLayout& scratch, const BackwardTask& task) {
  int64_t tiles = 0;
  for (int64_t begin = 0; begin < in.q.rows;) {
    int64_t end = begin;
    while (end < in.q.rows && in.starts[end] == in.starts[begin]) ++end;
    for (; begin < end; begin = std::min(begin + kKeyTile, end), ++tiles) {
      scratch.begin[tiles] = static_cast<int32_t>(begin);
      scratch.end[tiles] = static_cast<int32_t>(end);
    }
  }
  const int64_t window = in.shape.window, kv_heads = in.shape.num_kv_heads;
  for (int64_t distance = 0; tiles > 0; distance += kKeyTile) {
    if (window > 0 && distance >= kKeyTile - 1 + window) break;
    ParallelFor(tiles * kv_heads, [&](int64_t i, int thread) {
      const int64_t key = scratch.begin[i / kv_heads], end = scratch.end[i / kv_heads], query = key + distance;
      BackwardTile<Products>(in, i % kv_heads, key, std::min(key + kKeyTile, end), query,
                             std::min(query + kKeyTile, end), scratch.OfThread(in.shape, thread), task);
    });
    int64_t left = 0;
    for (int64_t t = 0; t < tiles; ++t) {
      if (scratch.begin[t] + distance + kKeyTile >= scratch.end[t]) continue;
      scratch.begin[left] = scratch.begin[t];
      scratch.end[left++] = scratch.end[t];
    }
    tiles = left;
  }
}

void Backward(const Inputs& in, const ScratchLayout& scratch, const BackwardTask& task) {
  OnTiles(in.shape.compute) ? BackwardWith<TileProducts>(in, scratch, task)
                            : BackwardWith<FloatProducts>(in, scratch, task);
}

// delta[i, h] = dout_ih . out_ih for query rows [begin, end).
void Deltas(const AttentionShape& shape, ConstMatrix out, ConstMatrix dout, int64_t begin, int64_t end, float* delta) {
  const F32 d;
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const float *y = out.row(i) + h * shape.head_dim, *dy = dout.row(i) + h * shape.head_dim;
      auto sum = hn::Zero(d);
      int64_t c = 0;
      for (; c + kLanes <= shape.head_dim; c += kLanes) {
        sum = hn::MulAdd(hn::LoadU(d, y + c), hn::LoadU(d, dy + c), sum);
      }
      float rest = 0;
      for (; c < shape.head_dim; ++c) rest += y[c] * dy[c];
      delta[i * shape.num_heads + h] = hn::GetLane(hn::SumOfLanes(d, sum)) + rest;
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

HWY_EXPORT(Forward);
HWY_EXPORT(Backward);
HWY_EXPORT(Deltas);

void CheckShapes(const Inputs& in) {
  const AttentionShape& shape = in.shape;
  CHECK_GT(shape.num_kv_heads, 0);
  CHECK_EQ(shape.num_heads % shape.num_kv_heads, 0);
  CHECK_EQ(in.q.cols, static_cast<int64_t>(shape.num_heads) * shape.head_dim);
  CHECK_EQ(in.k.cols, static_cast<int64_t>(shape.num_kv_heads) * shape.head_dim);
  CHECK_EQ(in.v.cols, in.k.cols);
  CHECK_EQ(in.v.rows, in.k.rows);
  CHECK_EQ(in.starts.size, in.q.rows);
  CHECK_GE(in.offset(), 0);
}

}  // namespace

int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t tokens) {
  ScratchCarver carver;
  ScratchLayout(carver, shape, tokens);
  return carver.used();
}

void AttentionForward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstInts starts, const AttentionShape& shape,
                      Matrix out, Matrix lse, Scratch scratch) {
  const Inputs in = {q, k, v, starts, shape};
  CheckShapes(in);
  ScratchCarver carver(scratch);
  const ScratchLayout layout(carver, shape, q.rows);
  HWY_DYNAMIC_DISPATCH(Forward)(in, layout, {out, lse});
}

void AttentionBackward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix out, ConstMatrix lse, ConstMatrix dout,
                       ConstInts starts, const AttentionShape& shape, Matrix dq, Matrix dk, Matrix dv,
                       Scratch scratch) {
  const Inputs in = {q, k, v, starts, shape};
  CheckShapes(in);
  CHECK_EQ(q.rows, k.rows);
  ScratchCarver carver(scratch);
  const ScratchLayout layout(carver, shape, q.rows);
  ParallelRanges(q.rows, 16, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(Deltas)(shape, out, dout, begin, end, layout.delta);
    for (int64_t i = begin; i < end; ++i) {
      std::fill_n(dq.row(i), dq.cols, 0.0f);
      std::fill_n(dk.row(i), dk.cols, 0.0f);
      std::fill_n(dv.row(i), dv.cols, 0.0f);
    }
  });
  HWY_DYNAMIC_DISPATCH(Backward)(in, layout, {lse, dout, layout.delta, dq, dk, dv});
}

}  // namespace thimble
#endif  // HWY_ONCE
