// --block_size and --double_quant, and counts of tensors as commands print them.
#pragma once

#include <nlohmann/json.hpp>

#include "absl/status/status.h"
#include "data/quantize_folder.h"

namespace thimble {

// Sets block_size and double_quant; InvalidArgument for a size that is none.
absl::Status SetQuantizeFlags(Quantize4BitOptions* options);
// Whether either of them stood on the command line.
bool QuantizeFlagsGiven();

// {format: {tensors, bytes}}
nlohmann::ordered_json CountsJson(const TensorCounts& counts);
// A title and one line a format on standard output.
void PrintCounts(const char* title, const TensorCounts& counts);

}  // namespace thimble
