// Records the optimiser's steps: the global gradient norm, then one AdamW step a parameter.
#pragma once

#include "trainer/tape.h"

namespace thimble {

struct OptimizerOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 0;
  bool decay_all = false;    // norms and biases decay as well, not only matrices
  double max_grad_norm = 0;  // 0: no clipping; the norm is computed all the same
};

// Reads the gradients of all trainable entries, writes grad_norm and clip_factor of the run scalars, then updates
// parameters and moments. A gradient norm that is not finite leaves everything as it is (clip_factor 0).
void RecordUpdate(Tape* tape, const OptimizerOptions& options);

}  // namespace thimble
