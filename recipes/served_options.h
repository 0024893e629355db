// qat: of a recipe as the options of trainer/served_weights.h.
#pragma once

#include <optional>

#include "absl/status/statusor.h"
#include "data/bnb_weight.h"
#include "recipes/recipe.pb.h"
#include "trainer/decoder_config.h"
#include "trainer/export_gguf.h"
#include "trainer/served_weights.h"

namespace thimble {

// How a folder's linear layers will be quantised, of qat.format; nothing without qat or with a format of GGUF files.
std::optional<Quantize4BitOptions> QatScheme(const recipe::Recipe& recipe);
// The mix of qat.format; nullptr without qat or with a format of folders.
const GgufMix* QatMix(const recipe::Recipe& recipe);
// That of output.export.gguf_type, else of qat.format, else of output.export.dtype.
const GgufMix* ExportedMix(const recipe::Recipe& recipe);
// InvalidArgument for a malformed entry of qat.tensors, one that matches no matrix of the model, and a type whose
// blocks or groups do not fit into the rows of a matrix.
absl::StatusOr<ServedOptions> ServedOptionsOf(const recipe::Recipe& recipe, const DecoderConfig& config);

}  // namespace thimble
