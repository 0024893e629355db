// Cross-entropy of a linear head with all logits, in double or in the complex numbers: loss, and formulas of its
// gradients.
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <cstdint>
#include <string>
#include <vector>

#include "ops/linear_cross_entropy.h"
#include "tests/ops/gradient_check.h"

namespace thimble {

struct CrossEntropyCase {
  int rows, vocab, dim;
  LinearCrossEntropyOptions options;
  std::string name;
  float scale = 1;  // of the hidden states
};

inline LinearCrossEntropyOptions MakeOptions(float soft_cap, float smoothing, float z_loss, float filter = 0) {
  LinearCrossEntropyOptions options;
  options.soft_cap = soft_cap, options.label_smoothing = smoothing, options.z_loss = z_loss;
  options.filter_threshold = filter;
  return options;
}

inline std::vector<CrossEntropyCase> Cases() {
  return {{1, 2, 1, {}, "smallest"},
          {5, 77, 7, {}, "plain"},
          {9, 130, 20, MakeOptions(5, 0, 0), "soft cap"},
          {8, 101, 12, MakeOptions(0, 0.1f, 0), "smoothing"},
          {7, 64, 16, MakeOptions(0, 0, 0.01f), "z-loss"},
          {11, 150, 9, MakeOptions(3, 0.2f, 0.02f), "all options"}};
}

inline std::vector<CrossEntropyCase> LargeCases() {
  return {{150, 700, 300, {}, "tiles", 0.1f},
          {530, 333, 33, MakeOptions(4, 0, 0.001f), "many rows", 0.3f},
          {70, 515, 130, MakeOptions(0, 0.1f, 0.001f), "smoothing", 0.2f},
          {97, 200, 64, MakeOptions(2, 0.1f, 0), "cap and smoothing", 0.2f}};
}

struct CrossEntropyInputs {
  TestMatrix h;
  std::vector<float> head;
  std::vector<int32_t> targets;
  int64_t vocab;

  explicit CrossEntropyInputs(const CrossEntropyCase& c)
      : h(TestMatrix::Random(c.rows, c.dim, 1, c.scale)),
        head(TestMatrix::Random(c.vocab, c.dim, 2).Values()),
        targets(c.rows),
        vocab(c.vocab) {
    for (int t = 0; t < c.rows; ++t) targets[t] = static_cast<int32_t>((t * 7919LL + c.vocab - 1) % c.vocab);
    for (int t = 3; t < c.rows; t += 4) targets[t] = -100;
  }
  WeightView head_view() const { return WeightView(head.data(), vocab, h.cols()); }
  ConstInts targets_view() const { return {targets.data(), static_cast<int64_t>(targets.size())}; }
  std::vector<double> head_double() const { return {head.begin(), head.end()}; }
};

// Losses of all rows, dense.
template <typename S>
std::vector<S> ReferenceLoss(const std::vector<S>& h, const std::vector<S>& head, const std::vector<int32_t>& targets,
                             const LinearCrossEntropyOptions& options, std::vector<S>* lse_out = nullptr) {
  const int64_t rows = targets.size(), dim = h.size() / rows, vocab = head.size() / dim;
  std::vector<S> loss(rows), z(vocab);
  if (lse_out != nullptr) lse_out->assign(rows, S(0));
  for (int64_t t = 0; t < rows; ++t) {
    if (targets[t] == options.ignore_index) continue;
    double max = -1e300;
    S mean(0), sum(0);
    for (int64_t v = 0; v < vocab; ++v) {
      z[v] = S(0);
      for (int64_t i = 0; i < dim; ++i) z[v] += h[t * dim + i] * head[v * dim + i];
      if (options.soft_cap > 0) z[v] = double(options.soft_cap) * std::tanh(z[v] / double(options.soft_cap));
      max = std::max(max, std::real(z[v]));
      mean += z[v] / double(vocab);
    }
    for (int64_t v = 0; v < vocab; ++v) sum += std::exp(z[v] - max);
    const S lse = max + std::log(sum);
    const double alpha = options.label_smoothing;
    loss[t] = (1 - alpha) * (lse - z[targets[t]]) + alpha * (lse - mean) + double(options.z_loss) * lse * lse;
    if (lse_out != nullptr) (*lse_out)[t] = lse;
  }
  return loss;
}

struct CrossEntropyGradients {
  std::vector<double> dh, dhead;
};

// Formulas of the gradients in double; the small cases check them by complex step.
inline CrossEntropyGradients ReferenceGradients(const CrossEntropyInputs& in, const LinearCrossEntropyOptions& options,
                                                double grad_scale) {
  const auto h = in.h.To<double>(), head = in.head_double();
  const int64_t rows = in.targets.size(), dim = in.h.cols();
  std::vector<double> lse;
  ReferenceLoss(h, head, in.targets, options, &lse);
  CrossEntropyGradients g{std::vector<double>(h.size()), std::vector<double>(head.size())};
  for (int64_t t = 0; t < rows; ++t) {
    if (in.targets[t] == options.ignore_index) continue;
    for (int64_t v = 0; v < in.vocab; ++v) {
      double z = 0, slope = 1;
      for (int64_t i = 0; i < dim; ++i) z += h[t * dim + i] * head[v * dim + i];
      if (options.soft_cap > 0) {
        const double x = std::tanh(z / options.soft_cap);
        z = options.soft_cap * x, slope = 1 - x * x;
      }
      const double alpha = options.label_smoothing, correct = v == in.targets[t] ? 1 - alpha : 0;
      const double dz =
          grad_scale * slope * (std::exp(z - lse[t]) * (1 + 2 * options.z_loss * lse[t]) - correct - alpha / in.vocab);
      for (int64_t i = 0; i < dim; ++i) {
        g.dh[t * dim + i] += dz * head[v * dim + i];
        g.dhead[v * dim + i] += dz * h[t * dim + i];
      }
    }
  }
  return g;
}

}  // namespace thimble
