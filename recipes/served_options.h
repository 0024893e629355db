// qat: of a recipe as the options of trainer/served_weights.h.
#pragma once

#include "absl/status/statusor.h"
#include "recipes/recipe.pb.h"
#include "trainer/decoder_config.h"
#include "trainer/export_gguf.h"
#include "trainer/served_weights.h"

namespace thimble {

// The mix of qat.format; nullptr without qat.
const GgufMix* QatMix(const recipe::Recipe& recipe);
// That of output.export.gguf_type, else of qat.format, else of output.export.dtype.
const GgufMix* ExportedMix(const recipe::Recipe& recipe);
// InvalidArgument for a malformed entry of qat.tensors, one that matches no matrix of the model, and a type whose
// blocks do not fit into the rows of a matrix.
absl::StatusOr<ServedOptions> ServedOptionsOf(const recipe::Recipe& recipe, const DecoderConfig& config);

}  // namespace thimble
