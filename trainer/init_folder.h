// A model folder with random weights, from a configuration alone: for measuring memory and speed at shapes whose
// weights are not at hand, and for starting pretraining.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "data/quantize_folder.h"

namespace thimble {

struct InitFolderOptions {
  TensorDType dtype = TensorDType::kBF16;       // kF32, kBF16 or kF16
  std::optional<Quantize4BitOptions> quantize;  // the decoder's linear layers in 4 bits
  uint64_t seed = 0;
  int64_t max_shard_bytes = kDefaultMaxShardBytes;
};

// Writes the folder `out` for `source`, a config.json or a folder that has one; of a folder, tokenizer and generation
// files are carried along. Matrices are N(0, initializer_range), biases 0, norms 1, each a function of the seed, its
// place among the model's tensors and the index in it alone, so that threads change nothing; a 4-bit weight is the
// quantised form of what the folder in `dtype` holds. Memory: one quantised weight and a few MiB. Returns the counts of
// what was written. InvalidArgument where the configuration is of no known family or quantised already, or where `out`
// exists.
absl::StatusOr<TensorCounts> InitModelFolder(const std::string& source, const std::string& out,
                                             const InitFolderOptions& options);

}  // namespace thimble
