// Records the optimiser's steps: the global gradient norm, then one step a parameter.
#pragma once

#include "trainer/optimizer_state.h"
#include "trainer/tape.h"

namespace thimble {

// Reads the gradients of all trainable entries, writes grad_norm and clip_factor of the run scalars, then updates
// parameters and optimiser state, which DeclareOptimizerState has declared with the same options. A gradient norm that
// is not finite leaves everything as it is (clip_factor 0).
void RecordUpdate(Tape* tape, const OptimizerOptions& options);

}  // namespace thimble
