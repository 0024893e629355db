// Gated activation of the Llama feed-forward: y = silu(gate) * up, silu(g) = g / (1 + e^-g). BitNet's has relu(g)^2.
// Infinite gates give NaN or infinity as the formula does in IEEE arithmetic; large finite ones do not overflow.
// Source: Shazeer 2020, arXiv:2002.05202.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

enum class GateActivation : uint8_t { kSilu, kReluSquared };

// gate, up, y [rows, cols]; y is written and may be gate or up.
void SwiGLUForward(ConstMatrix gate, ConstMatrix up, Matrix y, GateActivation activation = GateActivation::kSilu);
// dgate = dy up s (1 + gate (1 - s)), dup = dy gate s, s = 1 / (1 + e^-gate); with relu squared dgate = 2 dy up r,
// dup = dy r^2, r = max(gate, 0). Both are written, and each may be dy, gate or up.
void SwiGLUBackward(ConstMatrix gate, ConstMatrix up, ConstMatrix dy, Matrix dgate, Matrix dup,
                    GateActivation activation = GateActivation::kSilu);

}  // namespace thimble
