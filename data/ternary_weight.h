// Ternary weights of BitNet b1.58 in Hugging Face folders.
// Source: integrations/bitnet.py of transformers. A packed weight is U8 [out / 4, in]: bits 2 k and 2 k + 1 of byte
// (i, j) are value (k * out / 4 + i, j), plus 1. Beside it stands X.weight_scale [1]: the scale (linear_class
// autobitlinear) or its inverse (bitlinear). autobitlinear also has plain values -1, 0 and 1.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/model_folder.h"

namespace thimble {

// "...q_proj.weight" -> "...q_proj.weight_scale": a folder that has it holds the weight in ternary form.
std::string TernaryScaleName(const std::string& name);

// Whether the folder holds `name` with such a scale, or as packed codes (which bitsandbytes' 4-bit weights are, too).
bool HoldsTernary(const ModelFolder& folder, const std::string& name);

// Master weights [rows, cols] whose mean magnitude is the scale and which round to the stored values: value * scale /
// share of values other than 0. InvalidArgument or NotFound, naming the tensor, for another shape or type, a code that
// is none, a scale that is not positive and finite.
absl::StatusOr<std::vector<float>> ReadTernaryMasters(const ModelFolder& folder, const std::string& name, int64_t rows,
                                                      int64_t cols);

}  // namespace thimble
