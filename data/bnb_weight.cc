#include "data/bnb_weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

// The JSON of a quantisation state has this length, filled up with spaces: its nested_offset is known only after the
// weight was read, and tensors are declared before.
constexpr size_t kStateBytes = 256;
constexpr int64_t kMaxStateBytes = 1 << 16;
constexpr int64_t kChunk = 1 << 18;  // elements

std::string StateName(std::string_view name, Format format) {
  return absl::StrCat(std::string(name), ".quant_state.bitsandbytes__", std::string(InfoOf(format).name));
}

// Names in bitsandbytes' JSON.
const char* TorchName(TensorDType dtype) {
  return dtype == TensorDType::kF32 ? "float32" : dtype == TensorDType::kF16 ? "float16" : "bfloat16";
}

int64_t BlockCount(int64_t elements, int64_t block_size) { return (elements + block_size - 1) / block_size; }

absl::Status Invalid(const TensorRef& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor \"", tensor.info->name, "\": ", what));
}

// A companion tensor of the given type and length, as bytes in `out`.
template <typename T>
absl::Status ReadPart(const ModelFolder& folder, const std::string& name, TensorDType dtype, int64_t count,
                      std::vector<T>* out) {
  const TensorRef* part = folder.Find(name);
  if (part == nullptr) return absl::NotFoundError(absl::StrCat(folder.path(), ": has no tensor \"", name, "\""));
  if (part->info->dtype != dtype || part->info->elements != count) {
    return Invalid(*part, absl::StrCat("is ", std::string(NameOf(part->info->dtype)), " ", ShapeText(part->info->shape),
                                       ", expected ", std::string(NameOf(dtype)), " [", count, "]"));
  }
  out->resize(static_cast<size_t>(count));
  RETURN_IF_ERROR(part->file->ReadBytes(*part->info, 0, part->info->bytes, out->data()));
  if constexpr (std::is_same_v<T, float>) {
    for (int64_t i = 0; i < count; ++i) {
      if (!std::isfinite((*out)[i])) return Invalid(*part, absl::StrCat("element ", i, " is ", (*out)[i]));
    }
  }
  return absl::OkStatus();
}

// The quantisation state's fields that are no tensors.
struct State {
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t block_size = 0;
  TensorDType dtype = TensorDType::kBF16;
  bool nested = false;
  float nested_offset = 0;
};

absl::StatusOr<State> ParseState(const TensorRef& tensor, const nlohmann::json& json, std::string_view quant_type) {
  static const std::vector<std::string> kKnown = {"quant_type",       "blocksize",    "dtype",        "shape",
                                                  "nested_blocksize", "nested_dtype", "nested_offset"};
  for (const auto& [key, value] : json.items()) {
    if (std::find(kKnown.begin(), kKnown.end(), key) == kKnown.end()) {
      return Invalid(tensor, absl::StrCat("unknown key \"", key, "\" in the quantisation state"));
    }
  }
  const auto expect = [&tensor, &json](const char* key, const std::string& expected) {
    return Invalid(
        tensor, absl::StrCat(key, " is ", json.contains(key) ? json[key].dump() : "missing", ", expected ", expected));
  };
  State state;
  if (json.value("quant_type", nlohmann::json()) != std::string(quant_type)) {
    return expect("quant_type", absl::StrCat("\"", std::string(quant_type), "\" as the tensor's name says"));
  }
  const nlohmann::json block_size = json.value("blocksize", nlohmann::json());
  if (!block_size.is_number_unsigned() || block_size.get<uint64_t>() > 4096 ||
      !IsBlockSize4Bit(block_size.get<int64_t>())) {
    return expect("blocksize", "32, 64, 128, 256, 512, 1024, 2048 or 4096");
  }
  state.block_size = block_size.get<int64_t>();
  const nlohmann::json dtype = json.value("dtype", nlohmann::json());
  bool known = false;
  for (TensorDType candidate : {TensorDType::kF32, TensorDType::kBF16, TensorDType::kF16}) {
    if (dtype != TorchName(candidate)) continue;
    state.dtype = candidate;
    known = true;
  }
  if (!known) return expect("dtype", "\"float32\", \"bfloat16\" or \"float16\"");
  const nlohmann::json shape = json.value("shape", nlohmann::json());
  const auto extent = [&shape](size_t i) -> int64_t {
    const nlohmann::json& value = shape[i];
    return value.is_number_unsigned() && value.get<uint64_t>() <= 1u << 31 ? value.get<int64_t>() : 0;
  };
  if (!shape.is_array() || shape.size() != 2 || extent(0) == 0 || extent(1) == 0) {
    return expect("shape", "[out, in]");
  }
  state.rows = extent(0);
  state.cols = extent(1);
  state.nested = json.contains("nested_offset") || json.contains("nested_blocksize");
  if (state.nested) {
    if (json.value("nested_blocksize", nlohmann::json()) != kNestedBlockSize) return expect("nested_blocksize", "256");
    if (json.value("nested_dtype", nlohmann::json()) != "float32") return expect("nested_dtype", "\"float32\"");
    const nlohmann::json offset = json.value("nested_offset", nlohmann::json());
    if (!offset.is_number()) return expect("nested_offset", "a number");
    state.nested_offset = static_cast<float>(offset.get<double>());
    if (!std::isfinite(state.nested_offset)) return expect("nested_offset", "a finite number");
  }
  return state;
}

absl::StatusOr<State> ReadState(const ModelFolder& folder, const std::string& name, Format format) {
  const TensorRef* tensor = folder.Find(StateName(name, format));
  CHECK(tensor != nullptr);
  if (tensor->info->dtype != TensorDType::kU8 || tensor->info->bytes > kMaxStateBytes) {
    return Invalid(*tensor, "expected a short U8 tensor with JSON");
  }
  std::string text(static_cast<size_t>(tensor->info->bytes), '\0');
  RETURN_IF_ERROR(tensor->file->ReadBytes(*tensor->info, 0, tensor->info->bytes, text.data()));
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) return Invalid(*tensor, "the quantisation state is not a JSON object");
  return ParseState(*tensor, json, InfoOf(format).name);
}

std::string StateText(const BnbWeight& w) {
  std::string text = absl::StrFormat(
      "{\"quant_type\": \"%s\", \"blocksize\": %d, \"dtype\": \"%s\", \"shape\": [%d, %d]",
      std::string(InfoOf(w.weight.format).name), w.weight.block_size, TorchName(w.dtype), w.weight.rows, w.weight.cols);
  if (w.weight.double_quant()) {
    absl::StrAppendFormat(&text, ", \"nested_blocksize\": %d, \"nested_dtype\": \"float32\", \"nested_offset\": %.17g",
                          kNestedBlockSize, static_cast<double>(w.weight.nested_offset));
  }
  text += "}";
  CHECK_LE(text.size(), kStateBytes);
  text.resize(kStateBytes, ' ');
  return text;
}

}  // namespace

bool HasBnbWeight(const ModelFolder& folder, std::string_view name) {
  return folder.Find(StateName(name, Format::kNF4)) != nullptr || folder.Find(StateName(name, Format::kFP4)) != nullptr;
}

std::vector<std::string> BnbCompanions(const ModelFolder& folder, std::string_view name) {
  std::vector<std::string> names;
  for (const char* suffix : {".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
                             ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4"}) {
    const std::string companion = absl::StrCat(std::string(name), suffix);
    if (folder.Find(companion) != nullptr) names.push_back(companion);
  }
  return names;
}

absl::StatusOr<BnbWeight> ReadBnbWeight(const ModelFolder& folder, const std::string& name) {
  const TensorRef* codes = folder.Find(name);
  if (codes == nullptr) return absl::NotFoundError(absl::StrCat(folder.path(), ": has no tensor \"", name, "\""));
  const bool nf4 = folder.Find(StateName(name, Format::kNF4)) != nullptr;
  const bool fp4 = folder.Find(StateName(name, Format::kFP4)) != nullptr;
  if (nf4 == fp4) {
    return Invalid(*codes, nf4 ? "has a quantisation state of nf4 and one of fp4" : "has no 4-bit quantisation state");
  }
  BnbWeight result;
  QuantizedWeight& w = result.weight;
  w.format = nf4 ? Format::kNF4 : Format::kFP4;
  ASSIGN_OR_RETURN(const State state, ReadState(folder, name, w.format));
  result.dtype = state.dtype;
  w.rows = state.rows;
  w.cols = state.cols;
  w.block_size = static_cast<int32_t>(state.block_size);
  w.nested_offset = state.nested_offset;
  // Both extents are at most 2^31. Any storage type may hold the codes: the bytes are the same.
  const int64_t elements = w.rows * w.cols;
  if (codes->info->bytes != (elements + 1) / 2) {
    return Invalid(*codes, absl::StrCat("holds ", codes->info->bytes, " bytes of codes, expected ", (elements + 1) / 2,
                                        " for [", w.rows, ", ", w.cols, "]"));
  }
  std::vector<float> codebook;
  RETURN_IF_ERROR(ReadPart(folder, name + ".quant_map", TensorDType::kF32, 16, &codebook));
  if (!std::equal(codebook.begin(), codebook.end(), Codebook(w.format))) {
    return Invalid(*folder.Find(name + ".quant_map"),
                   absl::StrCat("is not the table of ", std::string(InfoOf(w.format).name)));
  }
  const int64_t blocks = BlockCount(elements, w.block_size);
  if (state.nested) {
    RETURN_IF_ERROR(ReadPart(folder, name + ".absmax", TensorDType::kU8, blocks, &w.absmax_codes));
    RETURN_IF_ERROR(ReadPart(folder, name + ".nested_absmax", TensorDType::kF32, BlockCount(blocks, kNestedBlockSize),
                             &w.nested_absmax));
    RETURN_IF_ERROR(ReadPart(folder, name + ".nested_quant_map", TensorDType::kF32, 256, &w.absmax_map));
  } else {
    RETURN_IF_ERROR(ReadPart(folder, name + ".absmax", TensorDType::kF32, blocks, &w.absmax));
  }
  w.codes.resize(static_cast<size_t>(codes->info->bytes));
  RETURN_IF_ERROR(codes->file->ReadBytes(*codes->info, 0, codes->info->bytes, w.codes.data()));
  return result;
}

absl::StatusOr<QuantizedWeight> QuantizeTensor(const TensorRef& tensor, const Quantize4BitOptions& options) {
  const TensorInfo& info = *tensor.info;
  if (info.shape.size() != 2) {
    return Invalid(tensor, absl::StrCat("has shape ", ShapeText(info.shape), ", expected a matrix"));
  }
  WeightQuantizer quantizer(options.format, info.shape[0], info.shape[1], options.block_size, options.double_quant);
  std::vector<float> chunk(static_cast<size_t>(std::min(info.elements, kChunk)));
  for (int64_t first = 0; first < info.elements; first += kChunk) {
    const int64_t count = std::min(kChunk, info.elements - first);
    RETURN_IF_ERROR(tensor.file->ReadFloats(info, first, count, chunk.data()));
    quantizer.Push({chunk.data(), count});
  }
  if (!quantizer.finite()) return Invalid(tensor, "holds NaN or infinity; a weight must be finite");
  return quantizer.Finish();
}

std::vector<TensorSpec> BnbSpecs(const std::string& name, int64_t rows, int64_t cols,
                                 const Quantize4BitOptions& options) {
  const int64_t blocks = BlockCount(rows * cols, options.block_size);
  std::vector<TensorSpec> specs = {
      {name, TensorDType::kU8, {(rows * cols + 1) / 2, 1}},
      {name + ".absmax", options.double_quant ? TensorDType::kU8 : TensorDType::kF32, {blocks}},
      {name + ".quant_map", TensorDType::kF32, {16}},
      {StateName(name, options.format), TensorDType::kU8, {static_cast<int64_t>(kStateBytes)}},
  };
  if (options.double_quant) {
    specs.push_back({name + ".nested_absmax", TensorDType::kF32, {BlockCount(blocks, kNestedBlockSize)}});
    specs.push_back({name + ".nested_quant_map", TensorDType::kF32, {256}});
  }
  return specs;
}

absl::Status AppendBnbWeight(const std::string& name, const BnbWeight& weight, ModelFolderWriter* writer) {
  const QuantizedWeight& w = weight.weight;
  const auto append = [writer](const std::string& part, const auto& values) {
    return writer->Append(part, values.data(), static_cast<int64_t>(values.size() * sizeof(values[0])));
  };
  RETURN_IF_ERROR(append(name, w.codes));
  RETURN_IF_ERROR(writer->Append(name + ".quant_map", Codebook(w.format), 16 * sizeof(float)));
  RETURN_IF_ERROR(append(StateName(name, w.format), StateText(weight)));
  if (!w.double_quant()) return append(name + ".absmax", w.absmax);
  RETURN_IF_ERROR(append(name + ".absmax", w.absmax_codes));
  RETURN_IF_ERROR(append(name + ".nested_absmax", w.nested_absmax));
  return append(name + ".nested_quant_map", w.absmax_map);
}

}  // namespace thimble
