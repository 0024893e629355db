#include "trainer/weight_storage.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/stored_weight.h"
#include "ops/check.h"
#include "ops/quantize_scaled.h"
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

WeightStorage QuantisedStorage(int64_t rows, int64_t cols, const QuantizationOptions& q) {
  if (Is4Bit(q.format)) return {q.format, Bytes4Bit(rows * cols, q.block_size, q.double_quant)};
  // Groups that do not fit are an error when the weight is read.
  const int64_t group = GroupOf(q.format, q.block_size, cols);
  return {q.format, ScaledBytes(q.format, rows, cols, group == 0 ? cols : group, q.offsets, q.columns)};
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
    if (HasStoredWeight(folder, name)) {
      // What cannot be read is an error when it is.
      const absl::StatusOr<StoredSize> size = StoredSizeOf(folder, name);
      return size.ok() ? WeightStorage{size->format, size->bytes} : StorageAs(Format::kBF16, rows, cols);
    }
    if (linear && ternary) return WeightStorage{Format::kTernary, TernaryBytes(rows, cols)};
    const TensorRef* tensor = folder.Find(name);
    const bool quantised = tensor != nullptr && IsBlockType(tensor->info->dtype);
    if (linear && !quantised && HasScales(quantization.format) && !Skipped(name, quantization)) {
      return QuantisedStorage(rows, cols, quantization);
    }
    return StorageAs(tensor == nullptr ? Format::kF32 : FormatInMemory(tensor->info->dtype), rows, cols);
  };
}

StorageOf StorageForShape(Format dtype, const QuantizationOptions& quantization) {
  return [dtype, quantization](const std::string& name, int64_t rows, int64_t cols, bool linear) {
    if (linear && HasScales(quantization.format) && !Skipped(name, quantization)) {
      return QuantisedStorage(rows, cols, quantization);
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
  if (IsTernary(config)) {
    return [plain](const std::string&, int64_t rows, int64_t cols, bool linear) {
      return linear ? WeightStorage{Format::kTernary, TernaryBytes(rows, cols)} : StorageAs(plain, rows, cols);
    };
  }
  ASSIGN_OR_RETURN(const StoredScheme stored, ParseStoredScheme(config["quantization_config"], path));
  QuantizationOptions own;
  own.format = stored.format;
  if (!Is4Bit(own.format)) own.block_size = static_cast<int32_t>(stored.group);
  own.double_quant = stored.double_quant;
  own.offsets = stored.offsets;
  own.columns = stored.columns;
  own.skip = stored.skip;
  return StorageForShape(plain, own);
}

}  // namespace thimble
