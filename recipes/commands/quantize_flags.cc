#include "recipes/commands/quantize_flags.h"

#include <gflags/gflags.h>

#include <cstdio>

#include "absl/strings/str_cat.h"
#include "recipes/commands/output_folder.h"
#include "trainer/run_plan.h"

DEFINE_int64(block_size, 64, "Weights that share one scale: a power of two from 32 to 4096.");
DEFINE_bool(double_quant, true, "Quantise the scales as well, to 8 bits.");

namespace thimble {

absl::Status SetQuantizeFlags(Quantize4BitOptions* options) {
  if (FLAGS_block_size < 1 || FLAGS_block_size > 4096 || !IsBlockSize4Bit(static_cast<int32_t>(FLAGS_block_size))) {
    return absl::InvalidArgumentError(
        absl::StrCat("--block_size: found ", FLAGS_block_size, ", expected 32, 64, 128, 256, 512, 1024, 2048 or 4096"));
  }
  options->block_size = static_cast<int32_t>(FLAGS_block_size);
  options->double_quant = FLAGS_double_quant;
  return absl::OkStatus();
}

bool QuantizeFlagsGiven() { return IsGiven("block_size") || IsGiven("double_quant"); }

nlohmann::ordered_json CountsJson(const TensorCounts& counts) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [format, count] : counts) json[format] = {{"tensors", count.tensors}, {"bytes", count.bytes}};
  return json;
}

void PrintCounts(const char* title, const TensorCounts& counts) {
  std::printf("%s\n", title);
  for (const auto& [format, count] : counts) {
    std::printf("  %-8s %6lld tensor%s %16lld bytes %12s\n", format.c_str(), static_cast<long long>(count.tensors),
                count.tensors == 1 ? " " : "s", static_cast<long long>(count.bytes), MiBText(count.bytes).c_str());
  }
}

}  // namespace thimble
