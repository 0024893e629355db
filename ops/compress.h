// Saved values in fewer bytes, a row at a time: bf16, or int8 with a scale for each block of 64.
#pragma once

#include <cstdint>

#include "ops/view.h"

namespace thimble {

enum class Compression : uint8_t {
  kNone,
  kBF16,  // to nearest even; 2 bytes a value, relative error at most 2^-8
  kInt8,  // x = scale * q, scale = absmax / 127 of 64 values in a row; 1.06 bytes a value, error at most scale / 2
};

inline constexpr int64_t kCompressionBlock = 64;

// 4-byte words that a row of `cols` values takes. int8: the scales of its blocks, then the values.
int64_t CompressedWords(Compression compression, int64_t cols);

// packed [rows, CompressedWords] is written; its words are no floats. A NaN or an infinity comes back as NaN at least
// in its own place (int8: in its block). Not for kNone.
void Compress(Compression compression, ConstMatrix x, Matrix packed);
// x [rows, cols] is written. Decompressed values compress to the same bytes again (bf16).
void Decompress(Compression compression, ConstMatrix packed, Matrix x);

}  // namespace thimble
