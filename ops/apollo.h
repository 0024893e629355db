// APOLLO for a matrix: Adam's moments live on a random projection of the gradient to `rank` dimensions and only say how
// much each channel of the gradient itself is scaled.
//   rows >= cols: P [rank, cols], R = g P^T [rows, rank], a channel is a row of g; else P [rows, rank],
//   R = P^T g [rank, cols], a channel is a column. Entries of P: N(0, 1) / sqrt(rank), new every projection_steps.
//   m += (1 - beta1)(R - m); v = beta2 v + (1 - beta2) R^2; N = m / (sqrt(v) + eps)
//   u = g * norm(N of the channel) / (norm(R of the channel) + 1e-8)
//   norm-growth limit: u /= max(norm(u) / (last + 1e-8), 1.01) / 1.01 once there is a last; last = norm(u)
//   p -= lr sqrt(1 - beta2^step) / (1 - beta1^step) sqrt(scale) u;  p *= 1 - lr wd
// Moments stay as they are when P changes, as in the reference. P comes from the counter-based generator and can be
// made again at each step: it takes scratch, not state. Source: Zhu et al. 2024, arXiv:2412.05270; apollo-torch 1.0.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

struct ApolloOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-6;
  double weight_decay = 0;
  double scale = 1;
  int64_t projection_steps = 200;
  int64_t rank = 128;
  uint64_t seed = 0;
  uint64_t stream = 0;  // of the random numbers; differs from matrix to matrix, below 2^32
  int64_t step = 1;     // number of this update, from 1
};

// Elements of m and of v: max(rows, cols) * rank.
int64_t ApolloMomentSize(int64_t rows, int64_t cols, int64_t rank);
int64_t ApolloScratchBytes(int64_t rows, int64_t cols, int64_t rank);

// P of the step, [rank, cols] or [rows, rank], row-major: min(rows, cols) * rank elements.
int64_t ApolloProjectionSize(int64_t rows, int64_t cols, int64_t rank);
void ApolloProjection(const ApolloOptions& options, int64_t rows, int64_t cols, Vector projection);

// g = grad_scale * grad. param [rows, cols], m and v [rows, rank] or [rank, cols], and last_norm [1] are updated in
// place; all state starts as zeros. A NaN or infinite gradient spoils everything.
void ApolloUpdate(ConstMatrix grad, float grad_scale, ConstVector projection, const ApolloOptions& options,
                  Matrix param, Vector m, Vector v, Vector last_norm, Scratch scratch);

}  // namespace thimble
