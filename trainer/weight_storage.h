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
  // Codes with scales: linear layers are quantised; otherwise they stay as in the file.
  Format format = Format::kBF16;
  int32_t block_size = 64;  // of nf4 and fp4; of the others ScaledScheme::group
  bool double_quant = true;
  bool offsets = false;           // of stored weights: zero points,
  bool columns = false;           // and columns out of order
  std::vector<std::string> skip;  // last parts of names of linear layers that stay as they are
};

// How each weight will lie in memory. What a folder holds quantised, and blocks of GGUF files, keep their own formats;
// linear layers of ternary models are codes.
StorageOf StorageFor(const ModelFolder& folder, const QuantizationOptions& quantization);
// The same from the shape alone, for plans without weights; `dtype` is that of unquantised weights.
StorageOf StorageForShape(Format dtype, const QuantizationOptions& quantization);
// The same as a config.json says: its dtype (f32 where it names none, so that no plan is too small) and, where it has
// a quantization_config, formats of its own. InvalidArgument for other quantisations.
absl::StatusOr<StorageOf> StorageForConfig(const nlohmann::json& config, const std::string& path,
                                           const QuantizationOptions& quantization);

}  // namespace thimble
