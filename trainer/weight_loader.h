// A Hugging Face folder into a store: weights as they are or quantised while they stream in.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "trainer/decoder.h"
#include "trainer/store.h"
#include "trainer/weight_storage.h"

namespace thimble {

// The decoder's configuration, with the head untied where the file holds a head of its own.
absl::StatusOr<DecoderConfig> ReadDecoderConfig(const ModelFolder& folder);

// Reads all weights of a decoder in an allocated store. Peak memory beyond the store: one tensor of the file, at most.
// A tensor that is missing, has another shape, is of no float type, or holds a NaN or an infinity is an error that
// names it, and so is a tensor that the model has no place for.
absl::Status LoadWeights(const ModelFolder& folder, const Decoder& decoder, const QuantizationOptions& quantization,
                         Store* store);

// The same errors but for values that are not finite, of a folder that is not quantised: without reading a value.
absl::Status CheckTensors(const ModelFolder& folder);

// "nf4: 210 tensors, 74.3 MiB; bf16: 1 tensor, 54.0 MiB; f32: 61 tensors, 0.1 MiB": so that nobody wonders whether
// 4-bit took effect.
std::string FormatSummary(const Store& store);

}  // namespace thimble
