// The optimiser's updates among the gradient steps.
#pragma once

#include "trainer/optimizer_state.h"
#include "trainer/tape.h"

namespace thimble {

// Rewrites a finished training tape so that gradients live in the arena, each from its first sum to the update of its
// parameter, which stands right behind the last step that reads either; at the end grad_norm of the run scalars is the
// norm of all. Parameters, state and norm come to the bits of RecordUpdate on the same gradients where those are finite
// and max_grad_norm is 0; a gradient that is not finite leaves its own parameter as it is. The store's gradients are in
// the arena (DeclareOptimizerState with in_backward).
void RecordUpdatesInBackward(Tape* tape, const OptimizerOptions& options);

}  // namespace thimble
