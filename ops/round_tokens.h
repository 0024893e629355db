// Activations on the grid of a format with a scale a token, as a server that quantises them on the fly sees them.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

enum class ActivationGrid : uint8_t {
  kNone,
  kInt8,  // asymmetric, from the least and the largest value of the token
  kE4M3,  // symmetric, from its largest magnitude
};

// y[t] = x[t] rounded to codes and decoded again; x, y [T, D], y written and may be x. Rows on their own, in f32:
//   int8  lo = min(0, min x), hi = max(0, max x), s = max((hi - lo) / 255, 2^-126),
//         z = clamp(-128 - rne(lo / s), -128, 127), y = (clamp(rne(x * (1 / s)) + z, -128, 127) - z) * s
//   e4m3  s = max |x| / 448, y = E4M3(x / s) * s; zeros where the scale is 0
// NaN and infinity make the row NaN. Source: pytorch/ao 0.18, Int8DynamicActivationIntxWeightConfig and its float8.
void RoundTokens(ConstMatrix x, ActivationGrid grid, Matrix y);

}  // namespace thimble
