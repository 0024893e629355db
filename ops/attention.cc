// Attention, one query row at a time with a running maximum and sum.
#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

struct Keys {
  int64_t begin, end;
};
Keys VisibleKeys(int64_t position, int64_t start, int64_t window) {
  const int64_t first = window > 0 ? std::max(start, position - window + 1) : start;
  return {first, position + 1};
}

float Dot(const float* a, const float* b, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

float Score(const float* q, const float* k, const AttentionShape& shape) {
  const float s = shape.scale * Dot(q, k, shape.head_dim);
  return shape.soft_cap > 0 ? shape.soft_cap * std::tanh(s / shape.soft_cap) : s;
}

}  // namespace

int64_t AttentionScratchBytes(const AttentionShape& shape, int64_t tokens) {
  (void)shape;
  return 8 * tokens;
}

void AttentionForward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstInts starts, const AttentionShape& shape,
                      Matrix out, Matrix lse, Scratch) {
  const int64_t offset = k.rows - q.rows, dim = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  CHECK_GE(offset, 0);
  ParallelFor(q.rows, [&](int64_t i, int) {
    const Keys keys = VisibleKeys(offset + i, starts[i], shape.window);
    for (int64_t h = 0; h < shape.num_heads; ++h) {
      const float* query = q.row(i) + h * dim;
      float* y = out.row(i) + h * dim;
      std::fill_n(y, dim, 0.0f);
      float max = -std::numeric_limits<float>::infinity(), sum = 0;
      for (int64_t j = keys.begin; j < keys.end; ++j) {
        const float s = Score(query, k.row(j) + h / group * dim, shape);
        const float* value = v.row(j) + h / group * dim;
        const float new_max = std::max(max, s), rescale = std::exp(max - new_max), p = std::exp(s - new_max);
        sum = sum * rescale + p;
        for (int64_t c = 0; c < dim; ++c) y[c] = y[c] * rescale + p * value[c];
        max = new_max;
      }
      for (int64_t c = 0; c < dim; ++c) y[c] /= sum;
      lse(i, h) = max + std::log(sum);
    }
  });
}

void AttentionBackward(ConstMatrix q, ConstMatrix k, ConstMatrix v, ConstMatrix out, ConstMatrix lse, ConstMatrix dout,
                       ConstInts starts, const AttentionShape& shape, Matrix dq, Matrix dk, Matrix dv, Scratch) {
  const int64_t dim = shape.head_dim, group = shape.num_heads / shape.num_kv_heads;
  CHECK_EQ(q.rows, k.rows);
  ParallelFor(shape.num_kv_heads, [&](int64_t g, int) {
    for (int64_t j = 0; j < k.rows; ++j) {
      std::fill_n(dk.row(j) + g * dim, dim, 0.0f);
      std::fill_n(dv.row(j) + g * dim, dim, 0.0f);
    }
    for (int64_t h = g * group; h < (g + 1) * group; ++h) {
      for (int64_t i = 0; i < q.rows; ++i) {
        const float* query = q.row(i) + h * dim;
        const float* dy = dout.row(i) + h * dim;
        const float delta = Dot(dy, out.row(i) + h * dim, dim);
        std::fill_n(dq.row(i) + h * dim, dim, 0.0f);
        const Keys keys = VisibleKeys(i, starts[i], shape.window);
        for (int64_t j = keys.begin; j < keys.end; ++j) {
          const float* key = k.row(j) + g * dim;
          const float s = Score(query, key, shape), p = std::exp(s - lse(i, h));
          float ds = shape.scale * p * (Dot(dy, v.row(j) + g * dim, dim) - delta);
          if (shape.soft_cap > 0) ds *= 1 - (s / shape.soft_cap) * (s / shape.soft_cap);
          for (int64_t c = 0; c < dim; ++c) {
            dq(i, h * dim + c) += ds * key[c];
            dk(j, g * dim + c) += ds * query[c];
            dv(j, g * dim + c) += p * dy[c];
          }
        }
      }
    }
  });
}

}  // namespace thimble
