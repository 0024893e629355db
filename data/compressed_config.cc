// quantization_config of compressed-tensors and ModelOpt.
#include <algorithm>
#include <string>

#include "absl/strings/str_cat.h"
#include "data/compressed_weight.h"

namespace thimble {
namespace {

nlohmann::json At(const nlohmann::json& object, const char* key) {
  return object.is_object() && object.contains(key) ? object[key] : nlohmann::json();
}

absl::Status Unread(const std::string& place, const char* key, const std::string& expected,
                    const nlohmann::json& found) {
  return absl::InvalidArgumentError(
      absl::StrCat(place, ": quantization_config.", key, ": expected ", expected, ", found ", found.dump()));
}

absl::StatusOr<StoredScheme> ParseModelOpt(const nlohmann::json& config, const std::string& place) {
  StoredScheme scheme;
  const nlohmann::json algorithm = At(config, "quant_algo");
  if (algorithm == "NVFP4") {
    scheme.format = Format::kE2M1;
    scheme.group = 16;
  } else if (algorithm == "FP8") {
    scheme.format = Format::kE4M3;
  } else {
    return Unread(place, "quant_algo", "\"NVFP4\" or \"FP8\"", algorithm);
  }
  return scheme;
}

}  // namespace

nlohmann::json CompressedConfig(Format format, int32_t group) {
  if (format == Format::kE2M1) {
    return {{"quant_method", "modelopt"},     {"quant_algo", "NVFP4"},          {"group_size", 16},
            {"kv_cache_quant_algo", nullptr}, {"exclude_modules", {"lm_head"}}, {"ignore", {"lm_head"}}};
  }
  const bool floats = format == Format::kE4M3 || format == Format::kE5M2;
  nlohmann::json weights = {{"num_bits", format == Format::kInt4 ? 4 : 8},
                            {"type", floats ? "float" : "int"},
                            {"symmetric", true},
                            {"strategy", group == 0 ? "channel" : "group"},
                            {"group_size", nullptr},
                            {"dynamic", false},
                            {"actorder", nullptr},
                            {"block_structure", nullptr},
                            {"observer", "minmax"},
                            {"observer_kwargs", nlohmann::json::object()}};
  if (group != 0) weights["group_size"] = group;
  nlohmann::json scheme = {
      {"targets", {"Linear"}}, {"weights", weights}, {"input_activations", nullptr}, {"output_activations", nullptr}};
  // Without it compressed-tensors takes 8-bit weights for packed ones, whatever the format of the whole says.
  if (format != Format::kInt4 && !floats) scheme["format"] = "int-quantized";
  return {{"quant_method", "compressed-tensors"},
          {"format", format == Format::kInt4 ? "pack-quantized"
                     : floats                ? "float-quantized"
                                             : "int-quantized"},
          {"quantization_status", "compressed"},
          {"config_groups", {{"group_0", scheme}}},
          {"ignore", {"lm_head"}},
          {"kv_cache_scheme", nullptr},
          {"global_compression_ratio", nullptr}};
}

absl::StatusOr<StoredScheme> ParseCompressedScheme(const nlohmann::json& config, const std::string& place) {
  if (At(config, "quant_method") == "modelopt") return ParseModelOpt(config, place);
  const nlohmann::json groups = At(config, "config_groups");
  if (!groups.is_object() || groups.size() != 1) {
    return Unread(place, "config_groups", "one group; with others the folder's tensors are needed", groups);
  }
  const nlohmann::json weights = At(*groups.begin(), "weights");
  const nlohmann::json bits = At(weights, "num_bits"), type = At(weights, "type"), group = At(weights, "group_size");
  StoredScheme scheme;
  if (type == "int" && (bits == 4 || bits == 8)) {
    scheme.format = bits == 4 ? Format::kInt4 : Format::kInt8;
  } else if (type == "float" && (bits == 4 || bits == 8)) {
    scheme.format = bits == 4 ? Format::kE2M1 : Format::kE4M3;
  } else {
    return Unread(place, "config_groups.weights", "4 or 8 bits of int or float", weights);
  }
  scheme.group = group.is_number_integer() ? std::clamp<int64_t>(group.get<int64_t>(), 0, 1 << 30) : 0;
  if (scheme.format == Format::kE2M1) scheme.group = 16;
  scheme.offsets = At(weights, "symmetric") == false;
  scheme.columns = At(weights, "actorder") == "group";
  return scheme;
}

}  // namespace thimble
