#include "data/stored_weight.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/bnb_weight.h"
#include "data/compressed_weight.h"
#include "data/gptq_weight.h"
#include "ops/check.h"

namespace thimble {

bool HasStoredWeight(const ModelFolder& folder, std::string_view name) {
  return HasBnbWeight(folder, name) || HasCompressedWeight(folder, name) || HasGptqWeight(folder, name);
}

std::vector<std::string> StoredParts(const ModelFolder& folder, std::string_view name) {
  if (HasGptqWeight(folder, name)) return GptqParts(folder, name);
  if (!HasBnbWeight(folder, name)) return CompressedParts(folder, name);
  std::vector<std::string> names = BnbCompanions(folder, name);
  if (folder.Find(name) != nullptr) names.emplace_back(name);
  return names;
}

absl::StatusOr<QuantizedWeight> ReadStoredWeight(const ModelFolder& folder, const std::string& name) {
  if (HasGptqWeight(folder, name)) return ReadGptqWeight(folder, name);
  if (!HasBnbWeight(folder, name)) return ReadCompressedWeight(folder, name);
  ASSIGN_OR_RETURN(BnbWeight read, ReadBnbWeight(folder, name));
  return std::move(read.weight);
}

absl::StatusOr<StoredSize> StoredSizeOf(const ModelFolder& folder, const std::string& name) {
  if (!HasBnbWeight(folder, name)) {
    ASSIGN_OR_RETURN(const StoredLayout layout,
                     HasGptqWeight(folder, name) ? GptqLayout(folder, name) : CompressedLayout(folder, name));
    return StoredSize{layout.format, layout.Bytes()};
  }
  const TensorRef* codes = folder.Find(name);
  if (codes == nullptr) return absl::NotFoundError(absl::StrCat(folder.path(), ": has no tensor \"", name, "\""));
  StoredSize size{Format::kFP4, codes->info->bytes};
  for (const std::string& part : BnbCompanions(folder, name)) {
    if (absl::EndsWith(part, "__nf4")) size.format = Format::kNF4;
    const bool statistics = absl::EndsWith(part, "absmax") || absl::EndsWith(part, ".nested_quant_map");
    if (statistics) size.bytes += folder.Find(part)->info->bytes;
  }
  return size;
}

absl::StatusOr<StoredScheme> ParseStoredScheme(const nlohmann::json& config, const std::string& place) {
  const auto text = [](const nlohmann::json& object, const char* key) {
    return object.is_object() && object.contains(key) && object[key].is_string() ? object[key].get<std::string>()
                                                                                 : std::string();
  };
  const std::string method = text(config, "quant_method");
  if (method == "gptq" || method == "awq") {
    ASSIGN_OR_RETURN(const GptqScheme scheme, ParseGptqScheme(config, place));
    const StoredLayout layout = PromisedLayout(scheme, 1, 1);
    return StoredScheme{layout.format, std::max<int64_t>(scheme.group, 0), false, layout.offsets, layout.columns, {}};
  }
  if (method == "compressed-tensors" || method == "modelopt") return ParseCompressedScheme(config, place);
  const std::string type = text(config, "bnb_4bit_quant_type");
  if (method != "bitsandbytes" || (type != "nf4" && type != "fp4")) {
    return absl::InvalidArgumentError(
        absl::StrCat(place,
                     ": quantization_config: expected bitsandbytes with nf4 or fp4, compressed-tensors, modelopt, "
                     "gptq or awq, found quant_method ",
                     method, "; take the model before it was quantised"));
  }
  StoredScheme scheme;
  scheme.format = type == "nf4" ? Format::kNF4 : Format::kFP4;
  const nlohmann::json twice = config.value("bnb_4bit_use_double_quant", nlohmann::json());
  scheme.double_quant = twice.is_boolean() && twice.get<bool>();
  const nlohmann::json skipped = config.value("llm_int8_skip_modules", nlohmann::json());
  for (const nlohmann::json& name : skipped.is_array() ? skipped : nlohmann::json::array()) {
    if (name.is_string()) scheme.skip.push_back(name.get<std::string>());
  }
  return scheme;
}

absl::StatusOr<BnbWeight> QuantizeToStored(const TensorRef& tensor, const Quantize4BitOptions& options) {
  BnbWeight weight;
  weight.dtype = tensor.info->dtype;
  auto quantized = Is4Bit(options.format) ? QuantizeTensor(tensor, options)
                                          : QuantizeTensorScaled(tensor, options.format, options.block_size);
  if (!quantized.ok()) return quantized.status();
  weight.weight = *std::move(quantized);
  return weight;
}

std::vector<TensorSpec> StoredSpecs(const std::string& name, int64_t rows, int64_t cols,
                                    const Quantize4BitOptions& options) {
  if (Is4Bit(options.format)) return BnbSpecs(name, rows, cols, options);
  return CompressedSpecs(name, options.format, options.block_size, rows, cols);
}

absl::Status AppendStored(const std::string& name, const BnbWeight& weight, ModelFolderWriter* writer) {
  if (Is4Bit(weight.weight.format)) return AppendBnbWeight(name, weight, writer);
  return AppendCompressedWeight(name, weight.weight, writer);
}

std::vector<std::string> StoredNames(const ModelFolder& folder) {
  std::set<std::string> names;
  for (const TensorRef& tensor : folder.tensors()) {
    std::string name = tensor.info->name;
    if (absl::EndsWith(name, ".weight_packed")) {
      name.resize(name.size() - std::string_view("_packed").size());
    } else if (absl::EndsWith(name, ".qweight")) {
      name.resize(name.size() - std::string_view("qweight").size());
      name += "weight";
    }
    if (HasStoredWeight(folder, name)) names.insert(name);
  }
  return {names.begin(), names.end()};
}

}  // namespace thimble
