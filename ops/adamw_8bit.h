// AdamW whose moments are 8-bit codes of the dynamic maps in blocks of 256, a float absmax each: the state of
// bitsandbytes' AdamW8bit. A step decodes a block (map[code] * absmax), updates moments and parameters in float as
// ops/adamw.h does, and encodes the moments again.
// Source: Dettmers et al. 2022, arXiv:2110.02861; bitsandbytes 0.50, backends/cpu/ops.py.
#pragma once

#include <cstdint>

#include "ops/adamw.h"
#include "ops/view.h"

namespace thimble {

// Elements that share an absmax.
inline constexpr int64_t kMomentBlockSize = 256;
// bitsandbytes' min_8bit_size: smaller tensors keep float moments (AdamWUpdate).
inline constexpr int64_t kMin8BitMoments = 4096;

inline int64_t MomentBlocks(int64_t n) { return (n + kMomentBlockSize - 1) / kMomentBlockSize; }

enum class MomentRounding : uint8_t {
  // The nearest code of value / absmax. A second moment above zero never becomes zero, which would let a later update
  // explode.
  kNearest,
  // As bitsandbytes on a CPU: value * (1 / absmax) goes through its grid of 65,536 steps, which turns values under
  // 1.5e-5 * absmax, zeros too, into 2.1e-5 (first moment) or 1.6e-5 (second) of it.
  kGrid,
};

// Codes [n] and absmax [MomentBlocks(n)] of both moments, all zero at the start. A block of zeros has absmax 0, codes
// 0.
struct Moments8Bit {
  uint8_t* m_codes = nullptr;  // signed map
  uint8_t* v_codes = nullptr;  // unsigned map
  Vector m_absmax;
  Vector v_absmax;
};

// As AdamWUpdate; param [n] and the moments are updated in place. A NaN or infinite gradient spoils its block.
void AdamW8BitUpdate(ConstVector grad, float grad_scale, const AdamWOptions& options, MomentRounding rounding,
                     Vector param, const Moments8Bit& moments);

}  // namespace thimble
