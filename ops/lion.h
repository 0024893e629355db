// Lion: the sign of an interpolated momentum, one state.
//   p *= 1 - lr wd; p -= lr sign(beta1 m + (1 - beta1) g); m = beta2 m + (1 - beta2) g;  sign(0) = 0
// Source: Chen et al. 2023, arXiv:2302.06675.
#pragma once

#include "ops/view.h"

namespace thimble {

struct LionOptions {
  double learning_rate = 1e-4;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double weight_decay = 0;
};

// g = grad_scale * grad. All vectors [n]; param and m (zeros at the start) are updated in place. A NaN or infinite
// gradient spoils its element.
void LionUpdate(ConstVector grad, float grad_scale, const LionOptions& options, Vector param, Vector m);

}  // namespace thimble
