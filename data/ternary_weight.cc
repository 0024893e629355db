#include "data/ternary_weight.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

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

absl::Status ReadPacked(const TensorRef& tensor, int64_t rows, int64_t cols, std::vector<float>* values) {
  if (rows % 4 != 0 || tensor.info->shape != std::vector<int64_t>{rows / 4, cols}) {
    return Damaged(tensor, absl::StrCat("expected shape ", ShapeText({rows / 4, cols}), ", a quarter of ", rows,
                                        " rows, found ", ShapeText(tensor.info->shape)));
  }
  std::vector<uint8_t> packed(rows / 4 * cols);
  RETURN_IF_ERROR(tensor.file->ReadBytes(*tensor.info, 0, static_cast<int64_t>(packed.size()), packed.data()));
  for (int64_t i = 0; i < rows / 4; ++i) {
    for (int64_t j = 0; j < cols; ++j) {
      for (int64_t k = 0; k < 4; ++k) {
        const int code = packed[i * cols + j] >> (2 * k) & 3;
        if (code == 3)
          return Damaged(tensor,
                         absl::StrCat("byte ", i * cols + j, " holds the code 3, expected 0, 1 or 2 (-1, 0, 1)"));
        (*values)[(k * (rows / 4) + i) * cols + j] = static_cast<float>(code - 1);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status ReadPlain(const TensorRef& tensor, int64_t rows, int64_t cols, std::vector<float>* values) {
  if (tensor.info->shape != std::vector<int64_t>{rows, cols}) {
    return Damaged(tensor,
                   absl::StrCat("expected shape ", ShapeText({rows, cols}), ", found ", ShapeText(tensor.info->shape)));
  }
  RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, 0, rows * cols, values->data()));
  const bool ternary = std::all_of(values->begin(), values->end(), [](float v) { return v == 0 || v == 1 || v == -1; });
  return ternary ? absl::OkStatus() : Damaged(tensor, "expected -1, 0 and 1 beside a weight_scale");
}

}  // namespace

std::string TernaryScaleName(const std::string& name) { return absl::StrCat(name, "_scale"); }

bool HoldsTernary(const ModelFolder& folder, const std::string& name) {
  const TensorRef* tensor = folder.Find(name);
  return folder.Find(TernaryScaleName(name)) != nullptr ||
         (tensor != nullptr && tensor->info->dtype == TensorDType::kU8);
}

absl::StatusOr<std::vector<float>> ReadTernaryMasters(const ModelFolder& folder, const std::string& name, int64_t rows,
                                                      int64_t cols) {
  const TensorRef* tensor = folder.Find(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(folder.path(), ": ", name, " is missing beside its weight_scale"));
  }
  ASSIGN_OR_RETURN(const float scale, ReadScale(folder, name));
  std::vector<float> values(rows * cols);
  const TensorDType dtype = tensor->info->dtype;
  if (dtype != TensorDType::kU8 && (!FormatOf(dtype) || !IsPlain(*FormatOf(dtype)))) {
    return Damaged(*tensor, absl::StrCat("expected U8 or a float type, found ", std::string(NameOf(dtype))));
  }
  RETURN_IF_ERROR(dtype == TensorDType::kU8 ? ReadPacked(*tensor, rows, cols, &values)
                                            : ReadPlain(*tensor, rows, cols, &values));
  const int64_t others = std::count_if(values.begin(), values.end(), [](float v) { return v != 0; });
  const double master = others == 0 ? 0 : static_cast<double>(scale) * static_cast<double>(values.size()) / others;
  for (float& value : values) value = static_cast<float>(value * master);
  return values;
}

}  // namespace thimble
