// How each weight of a model will lie in memory: as its file holds it, or quantised.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "nlohmann/json.hpp"
#include "trainer/decoder.h"

namespace thimble {

struct QuantizationOptions {
  Format format = Format::kBF16;  // kNF4 or kFP4: linear layers are quantised; otherwise they stay as in the file
  int32_t block_size = 64;
  bool double_quant = true;
  std::vector<std::string> skip;  // last parts of names of linear layers that stay as they are
};

// How each weight will lie in memory. What bitsandbytes quantised, and blocks of GGUF files, keep their own formats;
// linear layers of ternary models are codes.
StorageOf StorageFor(const ModelFolder& folder, const QuantizationOptions& quantization);
// The same from the shape alone, for plans without weights; `dtype` is that of unquantised weights.
StorageOf StorageForShape(Format dtype, const QuantizationOptions& quantization);
// The same as a config.json says: its dtype (f32 where it names none, so that no plan is too small) and, where its
// quantization_config is that of 4-bit bitsandbytes, formats of its own. InvalidArgument for other quantisations.
absl::StatusOr<StorageOf> StorageForConfig(const nlohmann::json& config, const std::string& path,
                                           const QuantizationOptions& quantization);

}  // namespace thimble
