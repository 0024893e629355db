// A model folder to the same model with quantised decoder weights, in the form that transformers with bitsandbytes or
// compressed-tensors opens, or ModelOpt's (nvfp4).
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "data/stored_weight.h"

namespace thimble {

struct TensorCount {
  int64_t tensors = 0;
  int64_t bytes = 0;  // as stored, with statistics and state
};
// By the format ("nf4", "int4"), or the file's name of a plain type ("BF16").
using TensorCounts = std::map<std::string, TensorCount>;

// Counts of a folder's tensors; a quantised weight counts as one tensor with all its parts.
TensorCounts CountTensors(const ModelFolder& folder);

// Whether `name` is the weight of a linear layer inside the decoder: "model.layers.<i>. ... _proj.weight". Embeddings,
// norms and lm_head are not.
bool IsDecoderLinear(std::string_view name);

// The entry quantization_config of config.json by which transformers knows quantised weights that were of type `dtype`.
nlohmann::json QuantizationConfig(const Quantize4BitOptions& options, TensorDType dtype);

struct QuantizeFolderOptions {
  Quantize4BitOptions quantize;
  // The weight that a tensor becomes, in that format; null: rounded to nearest.
  std::function<absl::StatusOr<BnbWeight>(const TensorRef& tensor)> quantizer;
  int64_t max_shard_bytes = kDefaultMaxShardBytes;
};

// Quantises every decoder linear of the folder `in`, copies the other tensors as they are, carries tokenizer and
// generation files along, and adds quantization_config to config.json. Streams: memory is one quantised weight and a
// few MiB. InvalidArgument for a folder that is quantised already, a matrix in a layer that is no known linear, NaN or
// infinity in any tensor (by name), or an `out` that exists. Returns the counts of what was written.
absl::StatusOr<TensorCounts> QuantizeModelFolder(const std::string& in, const std::string& out,
                                                 const QuantizeFolderOptions& options);

}  // namespace thimble
