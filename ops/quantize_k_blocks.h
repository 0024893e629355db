// Encoders of one block of 256 values in ggml's K-quants. For ops/quantize_blocks.cc.
#pragma once

#include <cstdint>

namespace thimble {

void EncodeQ4K(const float* x, uint8_t* out);
void EncodeQ5K(const float* x, uint8_t* out);
void EncodeQ6K(const float* x, uint8_t* out);

}  // namespace thimble
