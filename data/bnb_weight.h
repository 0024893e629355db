// One 4-bit weight in files, as bitsandbytes stores it (weight, weight.absmax, weight.quant_map, ...): reading one as
// it is, quantising a plain one while it streams in, and declaring and writing one.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/model_folder.h"
#include "ops/quantize_4bit.h"

namespace thimble {

struct Quantize4BitOptions {
  Format format = Format::kNF4;  // or kFP4; data/stored_weight.h takes the other codes with scales too
  int32_t block_size = 64;       // 32 .. 4096, a power of two; of the others ScaledScheme::group
  bool double_quant = true;      // of nf4 and fp4
};

// Whether the folder holds `name` (as "...q_proj.weight") quantised by bitsandbytes to 4 bits.
bool HasBnbWeight(const ModelFolder& folder, std::string_view name);
// Names of the tensors that belong to a 4-bit weight besides `name` itself and end on its suffixes; those that the
// folder has. For telling them from unexpected tensors.
std::vector<std::string> BnbCompanions(const ModelFolder& folder, std::string_view name);

struct BnbWeight {
  QuantizedWeight weight;
  // The type it was quantised from; bitsandbytes rounds decoded values to it.
  TensorDType dtype = TensorDType::kBF16;
};
// InvalidArgument or NotFound, naming the tensor, unless every part is there and fits.
absl::StatusOr<BnbWeight> ReadBnbWeight(const ModelFolder& folder, const std::string& name);

// Reads a matrix [rows, cols] of F32, BF16 or F16 in pieces and quantises it. Memory: the result, its plain absmax, and
// 1 MiB. InvalidArgument for NaN, infinity, another type or a shape that is not a matrix.
absl::StatusOr<QuantizedWeight> QuantizeTensor(const TensorRef& tensor, const Quantize4BitOptions& options);

// What a weight of this shape becomes in a file, and pushing it there.
std::vector<TensorSpec> BnbSpecs(const std::string& name, int64_t rows, int64_t cols,
                                 const Quantize4BitOptions& options);
absl::Status AppendBnbWeight(const std::string& name, const BnbWeight& weight, ModelFolderWriter* writer);

}  // namespace thimble
