// Cut cross-entropy, one row and one head row at a time.
#include "ops/linear_cross_entropy.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/check.h"
#include "ops/parallel.h"

namespace thimble {
namespace {

// Logit of one row, and its derivative with respect to the product.
struct Logit {
  float value, slope;
};
Logit Evaluate(const float* h, const float* c, int64_t dim, const LinearCrossEntropyOptions& options) {
  float z = 0;
  if (options.compute == Compute::kBF16) {
    for (int64_t i = 0; i < dim; ++i) z += BF16ToFloat(FloatToBF16(h[i])) * BF16ToFloat(FloatToBF16(c[i]));
  } else {
    for (int64_t i = 0; i < dim; ++i) z += h[i] * c[i];
  }
  if (options.soft_cap <= 0) return {z, 1};
  const float t = std::tanh(z / options.soft_cap);
  return {options.soft_cap * t, 1 - t * t};
}

float* HeadRow(Scratch scratch, int64_t dim, int thread) { return static_cast<float*>(scratch.data) + dim * thread; }

}  // namespace

int64_t LinearCrossEntropyScratchBytes(int64_t, int64_t hidden_dim, const LinearCrossEntropyOptions&) {
  return 4 * hidden_dim * NumThreads();
}

void LinearCrossEntropyForward(ConstMatrix h, const WeightView& head, ConstInts targets,
                               const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Scratch scratch) {
  const float alpha = options.label_smoothing;
  ParallelFor(h.rows, [&](int64_t t, int thread) {
    loss[t] = lse[t] = 0;
    if (targets[t] == options.ignore_index) return;
    float* c = HeadRow(scratch, h.cols, thread);
    float max = -std::numeric_limits<float>::infinity();
    double sum = 0, correct = 0;
    for (int64_t v = 0; v < head.rows; ++v) {
      DecodeRow(head, v, 0, h.cols, c);
      const float z = Evaluate(h.row(t), c, h.cols, options).value, new_max = std::max(max, z);
      sum = sum * std::exp(max - new_max) + std::exp(z - new_max);
      max = new_max;
      correct += (alpha / head.rows + (v == targets[t] ? 1 - alpha : 0)) * z;
    }
    lse[t] = static_cast<float>(max + std::log(sum));
    loss[t] = static_cast<float>(lse[t] - correct + options.z_loss * lse[t] * lse[t]);
  });
}

void LinearCrossEntropyBackward(ConstMatrix h, const WeightView& head, ConstInts targets, ConstVector lse,
                                float grad_scale, const LinearCrossEntropyOptions& options, Matrix dh, Matrix dhead,
                                Scratch scratch) {
  const float alpha = options.label_smoothing;
  for (int64_t t = 0; t < h.rows; ++t) {
    std::fill_n(dh.row(t), h.cols, 0.0f);
    if (targets[t] == options.ignore_index) continue;
    float* c = HeadRow(scratch, h.cols, 0);
    for (int64_t v = 0; v < head.rows; ++v) {
      DecodeRow(head, v, 0, h.cols, c);
      const Logit z = Evaluate(h.row(t), c, h.cols, options);
      const float p = std::exp(z.value - lse[t]);
      const float g = grad_scale * z.slope *
                      (p * (1 + 2 * options.z_loss * lse[t]) - (v == targets[t] ? 1 - alpha : 0) - alpha / head.rows);
      for (int64_t i = 0; i < h.cols; ++i) {
        dh(t, i) += g * c[i];
        if (dhead.data != nullptr) dhead(v, i) += g * h(t, i);
      }
    }
  }
}

void LinearCrossEntropyFused(ConstMatrix h, const WeightView& head, ConstInts targets, float grad_scale,
                             const LinearCrossEntropyOptions& options, Vector loss, Vector lse, Matrix dh,
                             Scratch scratch) {
  LinearCrossEntropyForward(h, head, targets, options, loss, lse, scratch);
  LinearCrossEntropyBackward(h, head, targets, lse, grad_scale, options, dh, Matrix(), scratch);
}

}  // namespace thimble
