// The constants of one AdamW step, computed in double and rounded once.
#pragma once

#include <cmath>

#include "ops/adamw.h"
#include "ops/check.h"

namespace thimble {

struct AdamWFactors {
  float grad_scale, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, root_correction, eps, negative_step_size;
};

inline AdamWFactors MakeAdamWFactors(const AdamWOptions& options, float grad_scale) {
  CHECK_GE(options.step, 1);
  const double correction1 = 1 - std::pow(options.beta1, static_cast<double>(options.step));
  const double correction2 = 1 - std::pow(options.beta2, static_cast<double>(options.step));
  return {
      .grad_scale = grad_scale,
      .decay = static_cast<float>(1 - options.learning_rate * options.weight_decay),
      .beta1 = static_cast<float>(options.beta1),
      .one_minus_beta1 = static_cast<float>(1 - options.beta1),
      .beta2 = static_cast<float>(options.beta2),
      .one_minus_beta2 = static_cast<float>(1 - options.beta2),
      .root_correction = static_cast<float>(std::sqrt(correction2)),
      .eps = static_cast<float>(options.eps),
      .negative_step_size = static_cast<float>(-options.learning_rate / correction1),
  };
}

}  // namespace thimble
