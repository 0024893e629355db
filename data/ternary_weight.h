// Ternary weights of BitNet b1.58 in Hugging Face folders and GGUF files.
// Source: integrations/bitnet.py of transformers. A packed weight is U8 [out / 4, in]: bits 2 k and 2 k + 1 of byte
// (i, j) are value (k * out / 4 + i, j), plus 1. Beside it stands X.weight_scale [1]: the scale (linear_class
// autobitlinear) or its inverse (bitlinear). autobitlinear also has plain values -1, 0 and 1. GGUF files have the
// values times the scale, in any type.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "ops/quantize_4bit.h"

namespace thimble {

// "...q_proj.weight" -> "...q_proj.weight_scale": a folder that has it holds the weight in ternary form.
std::string TernaryScaleName(const std::string& name);

// Whether the folder holds `name` with such a scale, as packed codes (which bitsandbytes' 4-bit weights are, too), or
// as a GGUF file's ternary layer.
bool HoldsTernary(const ModelFolder& folder, const std::string& name);

// Codes and scale, of kind Format::kTernary. InvalidArgument or NotFound, naming the tensor, for another shape or type,
// a value that is none of the three, a scale that is not positive and finite.
absl::StatusOr<QuantizedWeight> ReadTernary(const ModelFolder& folder, const std::string& name, int64_t rows,
                                            int64_t cols);

// The rows of a ternary weight as they are packed: rows / 4 * cols bytes. rows is a multiple of 4.
std::vector<uint8_t> PackForHuggingFace(const WeightView& ternary);

}  // namespace thimble
