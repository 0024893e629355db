#include "data/ternary_weight.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/gguf_model.h"
#include "ops/check.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

constexpr float kLeastScale = 1e-5f;  // of BitNet's quantiser

absl::Status Damaged(const TensorRef& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor ", tensor.info->name, ": ", what));
}

// The scale that the values are multiplied by.
absl::StatusOr<float> ReadScale(const ModelFolder& folder, const std::string& name) {
  ASSIGN_OR_RETURN(const TensorRef tensor, folder.Require(TernaryScaleName(name), {1}));
  if (!FormatOf(tensor.info->dtype)) return Damaged(tensor, "expected a float type");
  float scale = 0;
  RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, 0, 1, &scale));
  const nlohmann::json stored = folder.config().value("quantization_config", nlohmann::json::object());
  if (!stored.is_object() || stored.value("quant_method", nlohmann::json()) != "bitnet") {
    return Damaged(tensor, "expected a quantization_config of quant_method bitnet in config.json beside it");
  }
  const nlohmann::json type = stored.value("linear_class", nlohmann::json("bitlinear"));
  const float stored_scale = scale;
  if (type != "autobitlinear") scale = 1 / scale;
  if (!(scale > 0) || !std::isfinite(scale)) {
    return Damaged(tensor, absl::StrCat("expected a positive finite scale, found ", stored_scale));
  }
  return scale;
}

// Four rows of values a quarter of the rows apart, in each row of bytes.
absl::StatusOr<QuantizedWeight> ReadPacked(const TensorRef& tensor, int64_t rows, int64_t cols, float scale) {
  const int64_t quarter = rows / 4;
  if (rows % 4 != 0 || tensor.info->shape != std::vector<int64_t>{quarter, cols}) {
    return Damaged(tensor, absl::StrCat("expected shape ", ShapeText({quarter, cols}), ", a quarter of ", rows,
                                        " rows, found ", ShapeText(tensor.info->shape)));
  }
  std::vector<uint8_t> packed(static_cast<size_t>(quarter * cols));
  RETURN_IF_ERROR(tensor.file->ReadBytes(*tensor.info, 0, static_cast<int64_t>(packed.size()), packed.data()));
  TernaryPacker packer(rows, cols);
  std::vector<int8_t> values(static_cast<size_t>(cols));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t first = row % quarter * cols;
    const int64_t shift = 2 * (row / quarter);
    for (int64_t j = 0; j < cols; ++j) {
      const int code = packed[first + j] >> shift & 3;
      if (code == 3) {
        return Damaged(tensor, absl::StrCat("byte ", first + j, " holds the code 3, expected 0, 1 or 2 (-1, 0, 1)"));
      }
      values[j] = static_cast<int8_t>(code - 1);
    }
    packer.PushRow(values.data());
  }
  return packer.Finish(scale);
}

// A float tensor of values -unit, 0 and unit; unit 0: whatever its magnitude is, which is the scale then.
absl::StatusOr<QuantizedWeight> ReadValues(const TensorRef& tensor, int64_t rows, int64_t cols, float unit,
                                           float scale) {
  if (tensor.info->shape != std::vector<int64_t>{rows, cols}) {
    return Damaged(tensor,
                   absl::StrCat("expected shape ", ShapeText({rows, cols}), ", found ", ShapeText(tensor.info->shape)));
  }
  TernaryPacker packer(rows, cols);
  // Rows of whole blocks.
  std::vector<float> floats(static_cast<size_t>(cols));
  std::vector<int8_t> values(static_cast<size_t>(cols));
  for (int64_t row = 0; row < rows; ++row) {
    RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, row * cols, cols, floats.data()));
    for (int64_t j = 0; j < cols; ++j) {
      const float magnitude = std::abs(floats[j]);
      if (unit == 0 && magnitude != 0) unit = magnitude;
      if (magnitude != 0 && !(magnitude == unit)) {
        const char* expected = scale > 0 ? "-1, 0 and 1 beside a weight_scale"
                                         : "one magnitude beside zeros, as ternary models have it in GGUF files";
        return Damaged(tensor, absl::StrCat("value ", floats[j], " in row ", row, ", expected ", expected));
      }
      values[j] = static_cast<int8_t>((floats[j] > 0) - (floats[j] < 0));
    }
    packer.PushRow(values.data());
  }
  if (unit != 0 && !std::isfinite(unit)) return Damaged(tensor, "holds an infinity");
  return packer.Finish(scale > 0 ? scale : std::max(unit, kLeastScale));
}

bool IsScaledInPlace(const ModelFolder& folder, const std::string& name) {
  if (!absl::EndsWith(name, "_proj.weight") || !folder.config().contains("quantization_config")) return false;
  const nlohmann::json& stored = folder.config()["quantization_config"];
  return stored.is_object() && stored.value("linear_class", nlohmann::json()) == kGgufTernaryClass;
}

}  // namespace

std::string TernaryScaleName(const std::string& name) { return absl::StrCat(name, "_scale"); }

bool HoldsTernary(const ModelFolder& folder, const std::string& name) {
  const TensorRef* tensor = folder.Find(name);
  return folder.Find(TernaryScaleName(name)) != nullptr ||
         (tensor != nullptr && (tensor->info->dtype == TensorDType::kU8 || IsScaledInPlace(folder, name)));
}

absl::StatusOr<QuantizedWeight> ReadTernary(const ModelFolder& folder, const std::string& name, int64_t rows,
                                            int64_t cols) {
  const TensorRef* tensor = folder.Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(folder.path(), ": ", name, " is missing beside its weight_scale"));
  }
  const TensorDType dtype = tensor->info->dtype;
  if (IsScaledInPlace(folder, name)) return ReadValues(*tensor, rows, cols, /*unit=*/0, /*scale=*/0);
  ASSIGN_OR_RETURN(const float scale, ReadScale(folder, name));
  if (dtype == TensorDType::kU8) return ReadPacked(*tensor, rows, cols, scale);
  if (FormatOf(dtype) && IsPlain(*FormatOf(dtype))) return ReadValues(*tensor, rows, cols, /*unit=*/1, scale);
  return Damaged(*tensor, absl::StrCat("expected U8 or a float type, found ", std::string(NameOf(dtype))));
}

std::vector<uint8_t> PackForHuggingFace(const WeightView& ternary) {
  CHECK(ternary.format == Format::kTernary && ternary.rows % 4 == 0);
  const int64_t quarter = ternary.rows / 4, cols = ternary.cols;
  std::vector<uint8_t> packed(static_cast<size_t>(quarter * cols));
  std::vector<float> row(static_cast<size_t>(cols));
  for (int64_t r = 0; r < ternary.rows; ++r) {
    DecodeRow(ternary, r, 0, cols, row.data());
    uint8_t* out = packed.data() + r % quarter * cols;
    for (int64_t j = 0; j < cols; ++j) {
      const int code = 1 + (row[j] > 0) - (row[j] < 0);
      out[j] = static_cast<uint8_t>(out[j] | code << (2 * (r / quarter)));
    }
  }
  return packed;
}

}  // namespace thimble
