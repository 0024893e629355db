// A weight with its adapter merged, as an export writes it: in f32 row by row, or quantised.
#pragma once

#include <cstdint>

#include "ops/format.h"
#include "ops/view.h"

namespace thimble {

// W + scale * B A; a and b are empty (data null) where there is no adapter.
struct MergedWeight {
  WeightView w;   // [out, in], any format, in memory
  ConstMatrix a;  // [rank, in]
  ConstMatrix b;  // [out, rank]
  float scale = 0;
};

// out[0..in) = row `row` of it: scale * sum over ranks in their order, added to the decoded weight, each sum rounded.
void MergedRow(const MergedWeight& merged, int64_t row, float* out);

// Formats that QuantizeMerged writes: f16, bf16, those in blocks, int4, int8, e4m3 and e5m2.
bool CanQuantizeMerged(Format format);
// A tile of rows in f32.
int64_t QuantizeMergedScratchBytes(int64_t cols);
// out, a view of memory of this shape in its format, = the merged weight quantised: the bytes that QuantizeBlocks,
// QuantizeScaledRows, or a rounding to 16 bits, makes of MergedRow's rows. Meaningless where they are not finite. Runs
// on all threads.
void QuantizeMerged(const MergedWeight& merged, const WeightView& out, Scratch scratch);

}  // namespace thimble
