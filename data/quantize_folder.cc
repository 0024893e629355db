#include "data/quantize_folder.h"

#include <algorithm>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int64_t kChunkBytes = 1 << 20;

// The rest of "model.layers.<i>.<rest>"; empty for any other name.
std::string_view NameInLayer(std::string_view name) {
  constexpr std::string_view kPrefix = "model.layers.";
  if (name.substr(0, kPrefix.size()) != kPrefix) return {};
  name.remove_prefix(kPrefix.size());
  const size_t digits = name.find_first_not_of("0123456789");
  if (digits == 0 || digits == std::string_view::npos || name[digits] != '.') return {};
  return name.substr(digits + 1);
}

bool EndsWith(std::string_view text, std::string_view end) {
  return text.size() >= end.size() && text.substr(text.size() - end.size()) == end;
}

absl::Status Invalid(const TensorRef& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor \"", tensor.info->name, "\": ", what));
}

// bitsandbytes quantises every linear of the model but lm_head, so a matrix that is none of the known linears would be
// read back wrongly.
absl::Status CheckTensor(const TensorRef& tensor) {
  const std::string& name = tensor.info->name;
  if (!FormatOf(tensor.info->dtype)) {
    return Invalid(tensor, absl::StrCat("is ", std::string(NameOf(tensor.info->dtype)), ", expected F32, BF16 or F16"));
  }
  const bool matrix = tensor.info->shape.size() >= 2;
  if (IsDecoderLinear(name) && tensor.info->shape.size() != 2) {
    return Invalid(tensor, absl::StrCat("has shape ", ShapeText(tensor.info->shape), ", expected a matrix"));
  }
  if (matrix && !IsDecoderLinear(name) && name != "model.embed_tokens.weight" && name != "lm_head.weight") {
    return Invalid(tensor, "is a matrix of a kind that cannot be quantised here (expected *_proj.weight in a layer)");
  }
  if (IsDecoderLinear(name) && tensor.info->elements == 0) return Invalid(tensor, "is empty");
  return absl::OkStatus();
}

absl::Status CheckGroups(const TensorRef& tensor, const Quantize4BitOptions& options) {
  if (Is4Bit(options.format) || GroupOf(options.format, options.block_size, tensor.info->shape[1]) > 0) {
    return absl::OkStatus();
  }
  const int64_t group = options.block_size == 0 ? 2 : options.block_size;
  return Invalid(tensor, absl::StrCat("has ", tensor.info->shape[1], " columns, expected a multiple of ", group,
                                      " for ", std::string(SchemeName(options.format, options.block_size))));
}

// A tensor as it is, once it is known to be finite.
absl::Status CopyTensor(const TensorRef& tensor, ModelFolderWriter* writer) {
  const TensorInfo& info = *tensor.info;
  const int64_t element_bytes = BitsOf(info.dtype) / 8;
  std::vector<char> bytes(static_cast<size_t>(std::min(info.bytes, kChunkBytes)));
  std::vector<float> values(bytes.size() / static_cast<size_t>(element_bytes));
  WeightView view;
  view.format = *FormatOf(info.dtype);
  view.data = bytes.data();
  for (int64_t offset = 0; offset < info.bytes; offset += kChunkBytes) {
    const int64_t size = std::min(kChunkBytes, info.bytes - offset);
    const int64_t count = size / element_bytes;
    RETURN_IF_ERROR(tensor.file->ReadBytes(info, offset, size, bytes.data()));
    DecodeRow(view, 0, 0, count, values.data());
    float poison = 0;  // NaN as soon as one value is not finite
    for (int64_t i = 0; i < count; ++i) poison += values[i] * 0.0f;
    if (poison != 0) return Invalid(tensor, "holds NaN or infinity; a weight must be finite");
    RETURN_IF_ERROR(writer->Append(info.name, bytes.data(), size));
  }
  return absl::OkStatus();
}

}  // namespace

nlohmann::json QuantizationConfig(const Quantize4BitOptions& options, TensorDType dtype) {
  if (!Is4Bit(options.format)) return CompressedConfig(options.format, options.block_size);
  const char* compute = dtype == TensorDType::kF32 ? "float32" : dtype == TensorDType::kF16 ? "float16" : "bfloat16";
  return {{"quant_method", "bitsandbytes"},
          {"load_in_4bit", true},
          {"load_in_8bit", false},
          {"_load_in_4bit", true},
          {"_load_in_8bit", false},
          {"bnb_4bit_quant_type", std::string(InfoOf(options.format).name)},
          {"bnb_4bit_use_double_quant", options.double_quant},
          {"bnb_4bit_compute_dtype", compute},
          {"bnb_4bit_quant_storage", "uint8"},
          {"llm_int8_threshold", 6.0},
          {"llm_int8_skip_modules", nullptr},
          {"llm_int8_enable_fp32_cpu_offload", false},
          {"llm_int8_has_fp16_weight", false}};
}

bool IsDecoderLinear(std::string_view name) { return EndsWith(NameInLayer(name), "_proj.weight"); }

TensorCounts CountTensors(const ModelFolder& folder) {
  TensorCounts counts;
  std::set<std::string> companions;
  for (const std::string& name : StoredNames(folder)) {
    const absl::StatusOr<StoredSize> size = StoredSizeOf(folder, name);
    TensorCount& count = counts[size.ok() ? std::string(InfoOf(size->format).name) : "damaged"];
    ++count.tensors;
    for (const std::string& part : StoredParts(folder, name)) {
      count.bytes += folder.Find(part)->info->bytes;
      companions.insert(part);
    }
  }
  for (const TensorRef& tensor : folder.tensors()) {
    if (companions.count(tensor.info->name) > 0) continue;
    TensorCount& count = counts[std::string(NameOf(tensor.info->dtype))];
    ++count.tensors;
    count.bytes += tensor.info->bytes;
  }
  return counts;
}

absl::StatusOr<TensorCounts> QuantizeModelFolder(const std::string& in, const std::string& out,
                                                 const QuantizeFolderOptions& options) {
  CHECK(!Is4Bit(options.quantize.format) || IsBlockSize4Bit(options.quantize.block_size));
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> source, ModelFolder::Open(in));
  if (source->config().contains("quantization_config")) {
    return absl::InvalidArgumentError(
        absl::StrCat(in, "/config.json: has a quantization_config: the model is quantised already"));
  }
  std::vector<TensorSpec> specs;
  TensorDType linear_dtype = TensorDType::kBF16;
  int64_t linears = 0;
  for (const TensorRef& tensor : source->tensors()) {
    RETURN_IF_ERROR(CheckTensor(tensor));
    const TensorInfo& info = *tensor.info;
    if (!IsDecoderLinear(info.name)) {
      specs.push_back({info.name, info.dtype, info.shape});
      continue;
    }
    ++linears;
    linear_dtype = info.dtype;
    RETURN_IF_ERROR(CheckGroups(tensor, options.quantize));
    for (TensorSpec& spec : StoredSpecs(info.name, info.shape[0], info.shape[1], options.quantize)) {
      specs.push_back(std::move(spec));
    }
  }
  if (linears == 0) {
    return absl::InvalidArgumentError(absl::StrCat(in, ": has no tensor model.layers.<i>.*_proj.weight to quantise"));
  }
  nlohmann::json config = source->config();
  config["quantization_config"] = QuantizationConfig(options.quantize, linear_dtype);
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolderWriter> writer,
                   ModelFolderWriter::Create(out, config, specs, options.max_shard_bytes));
  for (const TensorRef& tensor : source->tensors()) {
    if (!IsDecoderLinear(tensor.info->name)) {
      RETURN_IF_ERROR(CopyTensor(tensor, writer.get()));
      continue;
    }
    ASSIGN_OR_RETURN(const BnbWeight weight,
                     options.quantizer ? options.quantizer(tensor) : QuantizeToStored(tensor, options.quantize));
    RETURN_IF_ERROR(AppendStored(tensor.info->name, weight, writer.get()));
  }
  RETURN_IF_ERROR(writer->CarryFiles(in));
  RETURN_IF_ERROR(writer->Finish());
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> written, ModelFolder::Open(out));
  return CountTensors(*written);
}

}  // namespace thimble
