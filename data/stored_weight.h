// Weights that a folder holds as codes with scales, whoever wrote them: bitsandbytes (data/bnb_weight.h),
// compressed-tensors and ModelOpt (data/compressed_weight.h), GPTQ and AWQ (data/gptq_weight.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/bnb_weight.h"
#include "data/compressed_weight.h"
#include "data/model_folder.h"

namespace thimble {

// Whether the folder holds `name` (as "...q_proj.weight") so.
bool HasStoredWeight(const ModelFolder& folder, std::string_view name);
// The tensors that it consists of, `name` itself among them where there is one.
std::vector<std::string> StoredParts(const ModelFolder& folder, std::string_view name);
// InvalidArgument or NotFound, naming the tensor, unless every part is there and fits.
absl::StatusOr<QuantizedWeight> ReadStoredWeight(const ModelFolder& folder, const std::string& name);

struct StoredSize {
  Format format = Format::kNF4;
  int64_t bytes = 0;  // in memory
};
// Without reading the values.
absl::StatusOr<StoredSize> StoredSizeOf(const ModelFolder& folder, const std::string& name);

// What config.json says of all of them, for plans without tensors: from an object quantization_config; `place` leads
// the message. InvalidArgument for what is not read here.
absl::StatusOr<StoredScheme> ParseStoredScheme(const nlohmann::json& config, const std::string& place);

// Quantising a matrix while it streams in, declaring what a weight becomes in a file, writing it, and the entry
// quantization_config: by bitsandbytes' means or those of data/compressed_weight.h.
absl::StatusOr<BnbWeight> QuantizeToStored(const TensorRef& tensor, const Quantize4BitOptions& options);
std::vector<TensorSpec> StoredSpecs(const std::string& name, int64_t rows, int64_t cols,
                                    const Quantize4BitOptions& options);
absl::Status AppendStored(const std::string& name, const BnbWeight& weight, ModelFolderWriter* writer);

// The names of all weights that are held so, as the model calls them.
std::vector<std::string> StoredNames(const ModelFolder& folder);

}  // namespace thimble
