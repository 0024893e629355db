// Quantising a model folder with the help of calibration rows.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "data/quantize_folder.h"
#include "ops/gptq.h"

namespace thimble {

struct CalibrationOptions {
  GptqOptions gptq;
  std::vector<std::string> files;    // rows as for training, or texts
  std::string chat_format = "auto";  // of rows of turns
  int64_t tokens = 32768;            // of the rows, at most
};

// QuantizeModelFolder with codes chosen by GPTQ. Memory: the model, its quantised weights, and QuantizeByGptq's.
absl::StatusOr<TensorCounts> QuantizeModelCalibrated(const std::string& in, const std::string& out,
                                                     const QuantizeFolderOptions& options,
                                                     const CalibrationOptions& calibration);

}  // namespace thimble
