// Weights to ggml's block formats, bit for bit as ggml's reference encoders (quantize_row_*_ref) make them.
// Source: ggml, gguf format version 3. Decoding is DecodeRow (ops/format.h).
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// Quantises values[0..n), n a multiple of the format's values per block, into n / values_per_block blocks at `out`.
// Round to nearest for q4_0, q4_1, q5_0, q5_1, q8_0, tq1_0, tq2_0, mxfp4 and nvfp4; a search over scales for q4_k, q5_k
// and q6_k. Runs on all threads.
// Returns the index of the first block that holds a NaN or an infinity (its output is meaningless), or -1.
int64_t QuantizeBlocks(Format format, ConstVector values, uint8_t* out);

}  // namespace thimble
