// Weights to codes with one scale a group: int4 and int8 as torchao's IntxWeightOnlyConfig computes them (symmetric),
// 8-bit floats as its float8 does, both for weights in f32, and NVFP4. Activations to int8. Decoding is DecodeRow.
// Source: pytorch/ao 0.18, quantization/quant_primitives.py and prototype/mx_formats/nvfp4_tensor.py.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "ops/format.h"
#include "ops/quantize_4bit.h"
#include "ops/view.h"

namespace thimble {

// What users name.
struct ScaledScheme {
  std::string_view name;  // "int4_g32"
  Format format;
  int32_t group;  // weights that share a scale; 0: a row of the weight, a channel
};
const std::vector<ScaledScheme>& ScaledSchemes();
// Null when there is none of this name.
const ScaledScheme* FindScaledScheme(std::string_view name);
// The name of the scheme; of one that has none, the format's.
std::string_view SchemeName(Format format, int32_t group);

// Weights that share a scale in a weight of `cols` columns; 0 when they do not fit into its rows.
int64_t GroupOf(Format format, int32_t group, int64_t cols);

// A weight of this shape with memory for all of its parts. group divides cols and is at most 2^31 - 1.
QuantizedWeight MakeScaledWeight(Format format, int64_t rows, int64_t cols, int64_t group);

// Bytes of all parts of such a weight, with offsets and columns out of order or without.
int64_t ScaledBytes(Format format, int64_t rows, int64_t cols, int64_t group, bool offsets, bool columns);

// s_t = max(amax / 2688, 2^-119) of NVFP4, 1 where amax is 0, whose scales are e4m3 * s_t: sets w->tensor_scale and the
// map.
void SetTensorScale(float amax, QuantizedWeight* w);

// Quantises rows [first, first + values.size / cols) of the weight; of e2m1 behind SetTensorScale. Per group:
//   int4, int8  scale = max(amax / 7.5 or 127.5, 2^-126), code = clamp(rne(x * (1 / scale)))
//   e4m3, e5m2  scale = amax / 448 or 57344, code = the nearest of x / scale; 0 where the scale is 0
//   e2m1        b = E4M3(clamp((amax / 6) / s_t, 2^-6, 448)), code = the nearest of x * ((1 / s_t) / b)
// Runs on all threads. False when a value is not finite (the rows are meaningless then).
bool QuantizeScaledRows(ConstVector values, int64_t first, QuantizedWeight* w);
// The same into the memory behind a view of MakeScaledWeight; not of e2m1.
bool QuantizeScaledRows(ConstVector values, int64_t first, const WeightView& w);

// Rows of activations to int8, each with a scale and, unless symmetric, a zero point: x ~ (code - zero) * scale.
//   symmetric   scale = amax / 127.5, zero = 0
//   otherwise   scale = (max(0, max x) - min(0, min x)) / 255, zero = clamp(-128 - rne(min(0, min x) / scale))
// The scale is at least 2^-126; codes are clamp(rne(x * (1 / scale)) + zero). codes [rows * cols], scales and zeros
// [rows] are written; a row that is not finite gets meaningless ones. Runs on all threads.
void QuantizeTokensInt8(ConstMatrix x, bool symmetric, int8_t* codes, Vector scales, int32_t* zeros);

}  // namespace thimble
