// Gated activation of the Llama feed-forward: y = silu(gate) * up, silu(g) = g / (1 + e^-g).
// Infinite gates give NaN or infinity as the formula does in IEEE arithmetic; large finite ones do not overflow.
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once

#include "ops/view.h"

namespace thimble {

// gate, up, y [rows, cols]; y is written and may be gate or up.
void SwiGLUForward(ConstMatrix gate, ConstMatrix up, Matrix y);
// dgate = dy up s (1 + gate (1 - s)), dup = dy gate s, s = 1 / (1 + e^-gate); both are written, and each may be dy,
// gate or up.
void SwiGLUBackward(ConstMatrix gate, ConstMatrix up, ConstMatrix dy, Matrix dgate, Matrix dup);

}  // namespace thimble
