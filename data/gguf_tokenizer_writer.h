// A tokenizer.json as the metadata that llama.cpp reads the same tokenizer from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/gguf_header.h"
#include "nlohmann/json.hpp"

namespace thimble {

// Keys tokenizer.* for the tokenizer in `folder` (tokenizer.json and the files beside it), or those of a GGUF file as
// they are. Ids up to vocab_size that no token has are filled up with unused ones. InvalidArgument where there is no
// tokenizer, or one that llama.cpp has no equal of, naming the part.
absl::StatusOr<std::vector<GgufEntry>> GgufTokenizerEntries(const std::string& folder, int64_t vocab_size);

}  // namespace thimble
