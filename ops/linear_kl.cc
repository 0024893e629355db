// Kullback-Leibler divergence of two heads, one row at a time with running maxima and sums.
#include "ops/linear_kl.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

float Logit(const float* h, const float* c, int64_t dim, float soft_cap) {
  float z = 0;
  for (int64_t i = 0; i < dim; ++i) z += h[i] * c[i];
  return soft_cap > 0 ? soft_cap * std::tanh(z / soft_cap) : z;
}

// Running maximum and sum of exponentials.
struct Softmax {
  float max = -std::numeric_limits<float>::infinity();
  double sum = 0;
  int32_t top = 0;
  // Returns the factor of sums taken with the maximum before.
  double Add(float z, int32_t id) {
    double rescale = 1;
    if (z > max) {
      rescale = std::exp(static_cast<double>(max) - z);
      max = z;
      top = id;
    }
    sum = sum * rescale + std::exp(static_cast<double>(z) - max);
    return rescale;
  }
};

}  // namespace

int64_t LinearKLScratchBytes(int64_t, int64_t hidden_dim_p, int64_t hidden_dim_q) {
  return 4 * (hidden_dim_p + hidden_dim_q) * NumThreads();
}

void LinearKL(ConstMatrix h_p, const WeightView& head_p, ConstMatrix h_q, const WeightView& head_q, Vector kl,
              VectorView<int32_t> top_p, VectorView<int32_t> top_q, Scratch scratch, float soft_cap_p,
              float soft_cap_q) {
  CHECK_EQ(head_p.rows, head_q.rows);
  ParallelFor(h_p.rows, [&](int64_t t, int thread) {
    float* c_p = static_cast<float*>(scratch.data) + (h_p.cols + h_q.cols) * thread;
    float* c_q = c_p + h_p.cols;
    Softmax p, q;
    double weighted = 0;
    for (int64_t v = 0; v < head_p.rows; ++v) {
      DecodeRow(head_p, v, 0, h_p.cols, c_p);
      DecodeRow(head_q, v, 0, h_q.cols, c_q);
      const float z_p = Logit(h_p.row(t), c_p, h_p.cols, soft_cap_p);
      const float z_q = Logit(h_q.row(t), c_q, h_q.cols, soft_cap_q);
      weighted *= p.Add(z_p, v);
      q.Add(z_q, v);
      weighted += std::exp(static_cast<double>(z_p) - p.max) * (static_cast<double>(z_p) - z_q);
    }
    const double lse_p = p.max + std::log(p.sum), lse_q = q.max + std::log(q.sum);
    kl[t] = static_cast<float>(std::max(0.0, weighted / p.sum - lse_p + lse_q));
    top_p[t] = p.top;
    top_q[t] = q.top;
  });
}

}  // namespace thimble
