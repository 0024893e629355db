#include "data/compressed_weight.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int64_t kChunk = 1 << 18;  // elements
constexpr int64_t kMostExtent = int64_t{1} << 30;

enum class Form { kNone, kPackedInt4, kBytes, kModelOptNvfp4, kPackedNvfp4 };

// "...q_proj.weight" + "_scale".
std::string Part(std::string_view name, const char* suffix) { return absl::StrCat(std::string(name), suffix); }

Form FormOf(const ModelFolder& folder, std::string_view name) {
  const TensorRef* packed = folder.Find(Part(name, "_packed"));
  const TensorRef* plain = folder.Find(name);
  const bool scale = folder.Find(Part(name, "_scale")) != nullptr;
  if (packed != nullptr) return packed->info->dtype == TensorDType::kU8 ? Form::kPackedNvfp4 : Form::kPackedInt4;
  if (plain == nullptr || !scale) return Form::kNone;
  switch (plain->info->dtype) {
    case TensorDType::kI8:
    case TensorDType::kF8E4M3:
    case TensorDType::kF8E5M2:
      return Form::kBytes;
    case TensorDType::kU8:
      return folder.Find(Part(name, "_scale_2")) != nullptr ? Form::kModelOptNvfp4 : Form::kNone;
    default:
      return Form::kNone;
  }
}

absl::Status Invalid(const TensorRef& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor \"", tensor.info->name, "\": ", what));
}

absl::StatusOr<TensorRef> Require(const ModelFolder& folder, const std::string& name, const std::vector<int64_t>& shape,
                                  TensorDType dtype) {
  ASSIGN_OR_RETURN(const TensorRef tensor, folder.Require(name, shape));
  if (tensor.info->dtype == dtype) return tensor;
  return Invalid(
      tensor, absl::StrCat("is ", std::string(NameOf(tensor.info->dtype)), ", expected ", std::string(NameOf(dtype))));
}

absl::Status ReadAll(const TensorRef& tensor, void* out) {
  return tensor.file->ReadBytes(*tensor.info, 0, tensor.info->bytes, out);
}

absl::StatusOr<std::vector<float>> ReadFiniteFloats(const TensorRef& tensor) {
  if (!FormatOf(tensor.info->dtype)) {
    return Invalid(tensor, absl::StrCat("is ", std::string(NameOf(tensor.info->dtype)), ", expected F32, BF16 or F16"));
  }
  std::vector<float> values(tensor.info->elements);
  RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, 0, tensor.info->elements, values.data()));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i])) return Invalid(tensor, absl::StrCat("element ", i, " is ", values[i]));
  }
  return values;
}

absl::StatusOr<std::vector<int32_t>> ReadInts(const ModelFolder& folder, const std::string& name,
                                              const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(const TensorRef tensor, Require(folder, name, shape, TensorDType::kI32));
  std::vector<int32_t> values(tensor.info->elements);
  RETURN_IF_ERROR(ReadAll(tensor, values.data()));
  return values;
}

// Rows and columns of the weight.
absl::StatusOr<std::pair<int64_t, int64_t>> ShapeOf(const ModelFolder& folder, const std::string& name, Form form) {
  const bool packed = form == Form::kPackedInt4 || form == Form::kPackedNvfp4;
  const TensorRef& codes = *folder.Find(packed ? Part(name, "_packed") : name);
  const std::vector<int64_t>& shape = codes.info->shape;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > kMostExtent || shape[1] > kMostExtent) {
    return Invalid(codes, absl::StrCat("has shape ", ShapeText(shape), ", expected a matrix"));
  }
  if (form == Form::kBytes) return std::make_pair(shape[0], shape[1]);
  if (form != Form::kPackedInt4) return std::make_pair(shape[0], shape[1] * 2);
  if (codes.info->dtype != TensorDType::kI32) {
    return Invalid(codes, absl::StrCat("is ", std::string(NameOf(codes.info->dtype)), ", expected I32"));
  }
  ASSIGN_OR_RETURN(const TensorRef named, Require(folder, Part(name, "_shape"), {2}, TensorDType::kI64));
  int64_t extents[2];
  RETURN_IF_ERROR(ReadAll(named, extents));
  if (extents[0] != shape[0] || extents[1] < 2 || extents[1] % 2 != 0 || (extents[1] + 7) / 8 != shape[1]) {
    return Invalid(codes, absl::StrCat("has shape ", ShapeText(shape), ", expected 8 codes of 4 bits an element for [",
                                       extents[0], ", ", extents[1], "]; other widths are not read here"));
  }
  return std::make_pair(extents[0], extents[1]);
}

// Scales of a weight of ints or 8-bit floats: one for all, one a row or one a group.
absl::StatusOr<int64_t> GroupOfScales(const TensorRef& scale, int64_t rows, int64_t cols) {
  const std::vector<int64_t>& shape = scale.info->shape;
  if (scale.info->elements == 1 || shape == std::vector<int64_t>{rows}) return cols;
  if (shape.size() == 2 && shape[0] == rows && shape[1] > 0 && cols % shape[1] == 0) {
    const int64_t group = cols / shape[1];
    if (group % 2 == 0 || group == cols) return group;
  }
  return Invalid(scale, absl::StrCat("has shape ", ShapeText(shape), ", expected one scale, or [", rows,
                                     ", groups] with equal groups of the ", cols, " columns"));
}

Format FormatOfBytes(TensorDType dtype) {
  return dtype == TensorDType::kI8 ? Format::kInt8 : dtype == TensorDType::kF8E4M3 ? Format::kE4M3 : Format::kE5M2;
}

void SwapNibbles(uint8_t* bytes, int64_t count) {
  for (int64_t i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(bytes[i] << 4 | bytes[i] >> 4);
}

int64_t PackedRowBytes(int64_t cols) { return (cols + 7) / 8 * 4; }

absl::Status ReadPackedInts(const ModelFolder& folder, const std::string& name, QuantizedWeight* w) {
  const TensorRef& codes = *folder.Find(Part(name, "_packed"));
  const int64_t stored = PackedRowBytes(w->cols), row = w->cols / 2;
  std::vector<uint8_t> bytes(codes.info->bytes);
  RETURN_IF_ERROR(ReadAll(codes, bytes.data()));
  for (int64_t r = 0; r < w->rows; ++r) std::copy_n(&bytes[r * stored], row, &w->codes[r * row]);
  SwapNibbles(w->codes.data(), w->rows * row);
  return absl::OkStatus();
}

// (code - zero) * scale = code * scale - zero * scale, exact for scales of 16 bits.
absl::Status ReadZeroBytes(const ModelFolder& folder, const std::string& name, QuantizedWeight* w) {
  const int64_t groups = w->cols / w->block_size;
  ASSIGN_OR_RETURN(const TensorRef tensor,
                   Require(folder, Part(name, "_zero_point"), {w->rows, groups}, TensorDType::kI8));
  std::vector<int8_t> zeros(tensor.info->elements);
  RETURN_IF_ERROR(ReadAll(tensor, zeros.data()));
  w->offsets.resize(zeros.size());
  for (size_t b = 0; b < zeros.size(); ++b) w->offsets[b] = static_cast<float>(-zeros[b]) * w->absmax[b];
  return absl::OkStatus();
}

absl::Status ReadZeroPoints(const ModelFolder& folder, const std::string& name, QuantizedWeight* w) {
  const int64_t groups = w->cols / w->block_size;
  ASSIGN_OR_RETURN(const std::vector<int32_t> words,
                   ReadInts(folder, Part(name, "_zero_point"), {(w->rows + 7) / 8, groups}));
  w->offsets.resize(w->absmax.size());
  for (int64_t r = 0; r < w->rows; ++r) {
    for (int64_t g = 0; g < groups; ++g) {
      const auto word = static_cast<uint32_t>(words[r / 8 * groups + g]);
      const int zero = static_cast<int>(word >> (4 * (r % 8)) & 15) - 8;
      w->offsets[r * groups + g] = static_cast<float>(-zero) * w->absmax[r * groups + g];
    }
  }
  return absl::OkStatus();
}

absl::Status ReadColumns(const ModelFolder& folder, const std::string& name, QuantizedWeight* w) {
  ASSIGN_OR_RETURN(w->column_blocks, ReadInts(folder, Part(name, "_g_idx"), {w->cols}));
  const int64_t groups = w->cols / w->block_size;
  for (int64_t c = 0; c < w->cols; ++c) {
    const int32_t group = w->column_blocks[c];
    if (group >= 0 && group < groups) continue;
    return Invalid(*folder.Find(Part(name, "_g_idx")),
                   absl::StrCat("element ", c, " is ", group, ", expected a group below ", groups));
  }
  return absl::OkStatus();
}

absl::Status ReadScales(const ModelFolder& folder, const std::string& name, QuantizedWeight* w) {
  ASSIGN_OR_RETURN(const std::vector<float> scales, ReadFiniteFloats(*folder.Find(Part(name, "_scale"))));
  if (scales.size() == 1) {
    std::fill(w->absmax.begin(), w->absmax.end(), scales[0]);
  } else {
    CHECK_EQ(scales.size(), w->absmax.size());
    w->absmax = scales;
  }
  return absl::OkStatus();
}

absl::Status ReadNvfp4(const ModelFolder& folder, const std::string& name, Form form, QuantizedWeight* w) {
  const bool packed = form == Form::kPackedNvfp4;
  RETURN_IF_ERROR(ReadAll(*folder.Find(packed ? Part(name, "_packed") : name), w->codes.data()));
  SwapNibbles(w->codes.data(), static_cast<int64_t>(w->codes.size()));
  ASSIGN_OR_RETURN(const TensorRef scale,
                   Require(folder, Part(name, "_scale"), {w->rows, w->cols / 16}, TensorDType::kF8E4M3));
  RETURN_IF_ERROR(ReadAll(scale, w->absmax_codes.data()));
  for (size_t i = 0; i < w->absmax_codes.size(); ++i) {
    if (w->absmax_codes[i] >= 0x7f) {
      return Invalid(scale, absl::StrCat("element ", i, " is ", E4M3ToFloat(w->absmax_codes[i]),
                                         ", expected a number that is not negative"));
    }
  }
  const std::string global = Part(name, packed ? "_global_scale" : "_scale_2");
  const TensorRef* tensor = folder.Find(global);
  if (tensor == nullptr || tensor->info->elements != 1) {
    return absl::NotFoundError(absl::StrCat(folder.path(), ": has no tensor \"", global, "\" of one element"));
  }
  ASSIGN_OR_RETURN(const std::vector<float> value, ReadFiniteFloats(*tensor));
  if (!(value[0] > 0)) return Invalid(*tensor, absl::StrCat("is ", value[0], ", expected a scale above 0"));
  w->tensor_scale = packed ? 0 : value[0];
  for (int code = 0; code < 0x7f; ++code) {
    const float e4m3 = E4M3ToFloat(static_cast<uint8_t>(code));
    w->absmax_map[code] = packed ? e4m3 / value[0] : e4m3 * value[0];
  }
  return absl::OkStatus();
}

// NaN and infinities among 8-bit floats.
absl::Status CheckCodes(const TensorRef& tensor, const QuantizedWeight& w) {
  const float* book = Codebook(w.format);
  for (size_t i = 0; i < w.codes.size(); ++i) {
    if (!std::isfinite(book[w.codes[i]])) {
      return Invalid(tensor, absl::StrCat("element ", i, " is ", book[w.codes[i]], "; a weight must be finite"));
    }
  }
  return absl::OkStatus();
}

// Calls use(first row, values) on pieces of whole rows.
template <typename Use>
absl::Status StreamRows(const TensorRef& tensor, const Use& use) {
  const int64_t rows = tensor.info->shape[0], cols = tensor.info->shape[1];
  const int64_t piece = std::max<int64_t>(1, kChunk / cols);
  std::vector<float> values(std::min(rows, piece) * cols);
  for (int64_t first = 0; first < rows; first += piece) {
    const int64_t count = std::min(piece, rows - first);
    RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, first * cols, count * cols, values.data()));
    if (!use(first, ConstVector(values.data(), count * cols))) {
      return Invalid(tensor, "holds NaN or infinity; a weight must be finite");
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool HasCompressedWeight(const ModelFolder& folder, std::string_view name) {
  return FormOf(folder, name) != Form::kNone;
}

std::vector<std::string> CompressedParts(const ModelFolder& folder, std::string_view name) {
  std::vector<std::string> names;
  for (const char* suffix : {"", "_packed", "_scale", "_shape", "_zero_point", "_g_idx", "_scale_2", "_global_scale"}) {
    const std::string part = Part(name, suffix);
    if (folder.Find(part) != nullptr) names.push_back(part);
  }
  // Scales of activations, which are not quantised here.
  if (!absl::EndsWith(std::string(name), ".weight")) return names;
  name.remove_suffix(std::min(name.size(), std::string_view("weight").size()));
  for (const char* suffix : {"input_scale", "input_global_scale"}) {
    const std::string part = Part(name, suffix);
    if (folder.Find(part) != nullptr) names.push_back(part);
  }
  return names;
}

absl::StatusOr<StoredLayout> CompressedLayout(const ModelFolder& folder, const std::string& name) {
  const Form form = FormOf(folder, name);
  CHECK(form != Form::kNone) << name;
  StoredLayout layout;
  ASSIGN_OR_RETURN(const auto shape, ShapeOf(folder, name, form));
  layout.rows = shape.first;
  layout.cols = shape.second;
  if (form == Form::kModelOptNvfp4 || form == Form::kPackedNvfp4) {
    layout.format = Format::kE2M1;
    layout.group = 16;
    if (layout.cols % 16 == 0) return layout;
    return Invalid(*folder.Find(Part(name, "_scale")),
                   absl::StrCat("belongs to ", layout.cols, " columns, expected 16 a scale"));
  }
  if (form == Form::kBytes) layout.format = FormatOfBytes(folder.Find(name)->info->dtype);
  const TensorRef* scale = folder.Find(Part(name, "_scale"));
  if (scale == nullptr) {
    return absl::NotFoundError(absl::StrCat(folder.path(), ": has no tensor \"", Part(name, "_scale"), "\""));
  }
  ASSIGN_OR_RETURN(layout.group, GroupOfScales(*scale, layout.rows, layout.cols));
  layout.offsets = folder.Find(Part(name, "_zero_point")) != nullptr;
  layout.columns = form == Form::kPackedInt4 && folder.Find(Part(name, "_g_idx")) != nullptr;
  return layout;
}

absl::StatusOr<QuantizedWeight> ReadCompressedWeight(const ModelFolder& folder, const std::string& name) {
  const Form form = FormOf(folder, name);
  ASSIGN_OR_RETURN(const StoredLayout layout, CompressedLayout(folder, name));
  QuantizedWeight w = MakeScaledWeight(layout.format, layout.rows, layout.cols, layout.group);
  if (layout.format == Format::kE2M1) {
    RETURN_IF_ERROR(ReadNvfp4(folder, name, form, &w));
    return w;
  }
  RETURN_IF_ERROR(ReadScales(folder, name, &w));
  if (form == Form::kBytes) {
    RETURN_IF_ERROR(ReadAll(*folder.Find(name), w.codes.data()));
    RETURN_IF_ERROR(CheckCodes(*folder.Find(name), w));
    if (layout.offsets) RETURN_IF_ERROR(ReadZeroBytes(folder, name, &w));
    return w;
  }
  RETURN_IF_ERROR(ReadPackedInts(folder, name, &w));
  if (layout.offsets) RETURN_IF_ERROR(ReadZeroPoints(folder, name, &w));
  if (layout.columns) RETURN_IF_ERROR(ReadColumns(folder, name, &w));
  return w;
}

absl::StatusOr<QuantizedWeight> QuantizeTensorScaled(const TensorRef& tensor, Format format, int32_t group) {
  const TensorInfo& info = *tensor.info;
  if (info.shape.size() != 2 || info.elements == 0) {
    return Invalid(tensor, absl::StrCat("has shape ", ShapeText(info.shape), ", expected a matrix"));
  }
  const int64_t size = GroupOf(format, group, info.shape[1]);
  if (size == 0) {
    return Invalid(tensor, absl::StrCat("has ", info.shape[1], " columns, expected a multiple of ",
                                        group == 0 ? 2 : group, " for ", std::string(InfoOf(format).name)));
  }
  QuantizedWeight w = MakeScaledWeight(format, info.shape[0], info.shape[1], size);
  if (format == Format::kE2M1) {
    float peak = 0;
    RETURN_IF_ERROR(StreamRows(tensor, [&peak](int64_t, ConstVector values) {
      for (int64_t i = 0; i < values.size; ++i) {
        if (!std::isfinite(values[i])) return false;
        peak = std::max(peak, std::fabs(values[i]));
      }
      return true;
    }));
    SetTensorScale(peak, &w);
  }
  RETURN_IF_ERROR(
      StreamRows(tensor, [&w](int64_t first, ConstVector values) { return QuantizeScaledRows(values, first, &w); }));
  return w;
}

std::vector<TensorSpec> CompressedSpecs(const std::string& name, Format format, int32_t group, int64_t rows,
                                        int64_t cols) {
  const int64_t groups = cols / GroupOf(format, group, cols);
  const TensorSpec scale = {Part(name, "_scale"), TensorDType::kF32, {rows, groups}};
  switch (format) {
    case Format::kInt4:
      return {{Part(name, "_packed"), TensorDType::kI32, {rows, (cols + 7) / 8}},
              {Part(name, "_shape"), TensorDType::kI64, {2}},
              scale};
    case Format::kE2M1:
      return {{name, TensorDType::kU8, {rows, cols / 2}},
              {Part(name, "_scale"), TensorDType::kF8E4M3, {rows, groups}},
              {Part(name, "_scale_2"), TensorDType::kF32, {}}};
    default: {
      const TensorDType dtype = format == Format::kInt8   ? TensorDType::kI8
                                : format == Format::kE4M3 ? TensorDType::kF8E4M3
                                                          : TensorDType::kF8E5M2;
      return {{name, dtype, {rows, cols}}, scale};
    }
  }
}

absl::Status AppendCompressedWeight(const std::string& name, const QuantizedWeight& w, ModelFolderWriter* writer) {
  const auto append = [writer](const std::string& part, const auto& values) {
    return writer->Append(part, values.data(), static_cast<int64_t>(values.size() * sizeof(values[0])));
  };
  if (!HasNibbles(w.format)) {
    RETURN_IF_ERROR(append(name, w.codes));
    return append(Part(name, "_scale"), w.absmax);
  }
  if (w.format == Format::kE2M1) {
    std::vector<uint8_t> codes = w.codes;
    SwapNibbles(codes.data(), static_cast<int64_t>(codes.size()));
    RETURN_IF_ERROR(append(name, codes));
    RETURN_IF_ERROR(append(Part(name, "_scale"), w.absmax_codes));
    return writer->Append(Part(name, "_scale_2"), &w.tensor_scale, sizeof(w.tensor_scale));
  }
  const int64_t stored = PackedRowBytes(w.cols), row = w.cols / 2;
  std::vector<uint8_t> codes(w.rows * stored);
  for (int64_t r = 0; r < w.rows; ++r) std::copy_n(&w.codes[r * row], row, &codes[r * stored]);
  SwapNibbles(codes.data(), static_cast<int64_t>(codes.size()));
  RETURN_IF_ERROR(append(Part(name, "_packed"), codes));
  RETURN_IF_ERROR(append(Part(name, "_shape"), std::vector<int64_t>{w.rows, w.cols}));
  return append(Part(name, "_scale"), w.absmax);
}

}  // namespace thimble
