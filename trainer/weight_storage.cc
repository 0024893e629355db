#include "trainer/weight_storage.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/bnb_weight.h"
#include "ops/check.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

bool Skipped(const std::string& name, const QuantizationOptions& quantization) {
  return std::any_of(quantization.skip.begin(), quantization.skip.end(), [&name](const std::string& skip) {
    return absl::StrContains(name, absl::StrCat(".", skip, "."));
  });
}

int64_t Bytes4Bit(int64_t values, int64_t block_size, bool double_quant) {
  const int64_t blocks = (values + block_size - 1) / block_size;
  const int64_t statistics = double_quant ? blocks + (blocks + 255) / 256 * 4 + 256 * 4 : blocks * 4;
  return (values + 1) / 2 + statistics;
}

WeightStorage Storage4Bit(int64_t rows, int64_t cols, const QuantizationOptions& quantization) {
  return {quantization.format, Bytes4Bit(rows * cols, quantization.block_size, quantization.double_quant)};
}

// Of a weight that the folder holds quantised.
WeightStorage StoredStorage4Bit(const ModelFolder& folder, const std::string& name) {
  WeightStorage storage{Format::kFP4, folder.Find(name)->info->bytes};
  for (const std::string& part : BnbCompanions(folder, name)) {
    if (absl::EndsWith(part, "__nf4")) storage.format = Format::kNF4;
    const bool statistics = absl::EndsWith(part, "absmax") || absl::EndsWith(part, ".nested_quant_map");
    if (statistics) storage.bytes += folder.Find(part)->info->bytes;
  }
  return storage;
}

WeightStorage StorageAs(Format format, int64_t rows, int64_t cols) {
  return {format, StoredBytes(format, rows * cols)};
}

Format FormatInMemory(TensorDType dtype) { return FormatOf(dtype).value_or(Format::kF32); }

// Whether the linear layers are BitNet's.
bool IsTernary(const nlohmann::json& config) {
  if (!config.contains("quantization_config") || !config["quantization_config"].is_object()) return false;
  return config["quantization_config"].value("quant_method", nlohmann::json()) == "bitnet";
}

}  // namespace

StorageOf StorageFor(const ModelFolder& folder, const QuantizationOptions& quantization) {
  const bool ternary = IsTernary(folder.config());
  return [&folder, quantization, ternary](const std::string& name, int64_t rows, int64_t cols, bool linear) {
    if (HasBnbWeight(folder, name)) return StoredStorage4Bit(folder, name);
    if (linear && ternary) return WeightStorage{Format::kTernary, TernaryBytes(rows, cols)};
    const TensorRef* tensor = folder.Find(name);
    const bool quantised = tensor != nullptr && IsBlockType(tensor->info->dtype);
    if (linear && !quantised && Is4Bit(quantization.format) && !Skipped(name, quantization)) {
      return Storage4Bit(rows, cols, quantization);
    }
    return StorageAs(tensor == nullptr ? Format::kF32 : FormatInMemory(tensor->info->dtype), rows, cols);
  };
}

StorageOf StorageForShape(Format dtype, const QuantizationOptions& quantization) {
  return [dtype, quantization](const std::string& name, int64_t rows, int64_t cols, bool linear) {
    if (linear && Is4Bit(quantization.format) && !Skipped(name, quantization)) {
      return Storage4Bit(rows, cols, quantization);
    }
    return StorageAs(dtype, rows, cols);
  };
}

absl::StatusOr<StorageOf> StorageForConfig(const nlohmann::json& config, const std::string& path,
                                           const QuantizationOptions& quantization) {
  const auto text = [](const nlohmann::json& object, const char* key) {
    return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : std::string();
  };
  const std::string dtype = config.contains("dtype") ? text(config, "dtype") : text(config, "torch_dtype");
  const Format plain = dtype == "bfloat16" ? Format::kBF16 : dtype == "float16" ? Format::kF16 : Format::kF32;
  if (!config.contains("quantization_config") || !config["quantization_config"].is_object()) {
    return StorageForShape(plain, quantization);
  }
  const nlohmann::json& stored = config["quantization_config"];
  const std::string type = text(stored, "bnb_4bit_quant_type");
  if (IsTernary(config)) {
    return [plain](const std::string&, int64_t rows, int64_t cols, bool linear) {
      return linear ? WeightStorage{Format::kTernary, TernaryBytes(rows, cols)} : StorageAs(plain, rows, cols);
    };
  }
  if (text(stored, "quant_method") != "bitsandbytes" || (type != "nf4" && type != "fp4")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": quantization_config: expected bitsandbytes with nf4 or fp4, found quant_method ",
                     text(stored, "quant_method"), "; take the model before it was quantised"));
  }
  QuantizationOptions own;
  own.format = type == "nf4" ? Format::kNF4 : Format::kFP4;
  const nlohmann::json twice = stored.value("bnb_4bit_use_double_quant", nlohmann::json());
  own.double_quant = twice.is_boolean() && twice.get<bool>();
  const nlohmann::json skipped = stored.value("llm_int8_skip_modules", nlohmann::json());
  for (const nlohmann::json& name : skipped.is_array() ? skipped : nlohmann::json::array()) {
    if (name.is_string()) own.skip.push_back(name.get<std::string>());
  }
  return StorageForShape(plain, own);
}

}  // namespace thimble
