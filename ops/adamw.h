// AdamW with the arithmetic of torch.optim.AdamW in float: decoupled decay first, eps after the bias-corrected root.
//   p *= 1 - lr wd; m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
//   p -= lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
// Source: Loshchilov & Hutter 2019, arXiv:1711.05101; torch/optim/adamw.py.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

// In double: 1 - beta2 of a beta2 rounded to float would be wrong by 1e-5 of itself.
struct AdamWOptions {
  double learning_rate = 1e-3;
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  int64_t step = 1;  // number of this update, from 1
};

// g = grad_scale * grad (grad_scale is the clip factor). All vectors [n]; param, m and v are updated in place; m and v
// start as zeros. A NaN or infinite gradient spoils its element: test the norm first (ops/grad_norm.h).
void AdamWUpdate(ConstVector grad, float grad_scale, const AdamWOptions& options, Vector param, Vector m, Vector v);

}  // namespace thimble
