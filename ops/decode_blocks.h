// Decoders of ggml's block formats: blocks that hold their own scales.
// Source: ggml, gguf format version 3; bit for bit what ggml's reference decoders (dequantize_row_*) give.
#pragma once

#include <cstdint>

#include "ops/format.h"

namespace thimble {

// out[0 .. blocks * values_per_block) = the values of consecutive blocks of a block format, in f32: products and sums
// rounded one by one, as the format's owner does. AVX2 where the active CPU level has it; the same bits without.
void DecodeBlocks(Format format, const void* in, int64_t blocks, float* out);
void DecodeBlocksPortable(Format format, const void* in, int64_t blocks, float* out);

// The 16 values of MXFP4's and NVFP4's codes, doubled: 0, 1, 2, 3, 4, 6, 8, 12 and their negatives (0 first).
inline constexpr float kDoubledE2M1[16] = {0.f, 1.f,  2.f,  3.f,  4.f,  6.f,  8.f,  12.f,
                                           0.f, -1.f, -2.f, -3.f, -4.f, -6.f, -8.f, -12.f};
// Half of what a scale byte means: 2^(e - 128) of MXFP4's, UE4M3 of NVFP4's (0x7f is 0).
float HalfE8M0(uint8_t e);
float HalfUE4M3(uint8_t bits);

// Scale and minimum of sub-block j (0 .. 7) of Q4_K and Q5_K, from the 12 bytes that pack them in 6 bits.
inline void UnpackScaleAndMin(int j, const uint8_t* packed, uint8_t* scale, uint8_t* min) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[j + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4);
    *min = static_cast<uint8_t>((packed[j + 4] >> 4) | (packed[j] >> 6) << 4);
  }
}

}  // namespace thimble
