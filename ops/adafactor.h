// Adafactor with a given rate: the second moment of a matrix kept as means of its rows and columns, no first moment.
//   beta = 1 - step^-0.8; u = g^2 + 1e-30
//   matrix: R_i = beta R_i + (1 - beta) mean_j u_ij;  C_j = beta C_j + (1 - beta) mean_i u_ij;
//           U_ij = g_ij / sqrt(R_i / mean(R)) / sqrt(C_j)
//   vector: V = beta V + (1 - beta) u;  U = g / sqrt(V)
//   U /= max(1, rms(U) / clip_threshold);  p *= 1 - lr wd;  p -= lr U
// As transformers.optimization.Adafactor with scale_parameter and relative_step off (torch.optim.Adafactor differs).
// Source: Shazeer & Stern 2018, arXiv:1804.04235.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

struct AdafactorOptions {
  double learning_rate = 1e-3;
  double clip_threshold = 1;
  double weight_decay = 0;
  int64_t step = 1;  // number of this update, from 1
};

// Scratch of either update below; a vector of n counts as [1, n].
int64_t AdafactorScratchBytes(int64_t rows, int64_t cols);

// g = grad_scale * grad. param [rows, cols], row [rows] and col [cols] (zeros at the start) are updated in place. A NaN
// or infinite gradient spoils everything.
void AdafactorUpdate(ConstMatrix grad, float grad_scale, const AdafactorOptions& options, Matrix param, Vector row,
                     Vector col, Scratch scratch);
// The same for a vector; param and v [n].
void AdafactorVectorUpdate(ConstVector grad, float grad_scale, const AdafactorOptions& options, Vector param, Vector v,
                           Scratch scratch);

}  // namespace thimble
