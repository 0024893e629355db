#include "data/gptq_weight.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/json_file.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr int64_t kMostExtent = int64_t{1} << 30;

// "...q_proj.weight" to "...q_proj" + suffix.
std::string Part(std::string_view name, const char* suffix) {
  name.remove_suffix(std::min(name.size(), std::string_view("weight").size()));
  return absl::StrCat(std::string(name), suffix);
}

absl::Status Invalid(const TensorRef& tensor, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor \"", tensor.info->name, "\": ", what));
}

absl::StatusOr<GptqScheme> SchemeOf(const ModelFolder& folder) {
  const nlohmann::json& config = folder.config();
  if (const auto found = config.find("quantization_config"); found != config.end()) {
    return ParseGptqScheme(*found, folder.config_place());
  }
  std::error_code error;
  const std::string path = folder.path() + "/quantize_config.json";
  if (!std::filesystem::exists(path, error)) {
    return absl::InvalidArgumentError(absl::StrCat(
        folder.config_place(), ": has no quantization_config, expected one for the quantised weights of this folder"));
  }
  ASSIGN_OR_RETURN(const nlohmann::json own, ReadJsonObject(path));
  return ParseGptqScheme(own, path);
}

absl::StatusOr<std::vector<uint32_t>> ReadWords(const ModelFolder& folder, const std::string& name,
                                                const std::vector<int64_t>& shape) {
  ASSIGN_OR_RETURN(const TensorRef tensor, folder.Require(name, shape));
  if (tensor.info->dtype != TensorDType::kI32) {
    return Invalid(tensor, absl::StrCat("is ", std::string(NameOf(tensor.info->dtype)), ", expected I32"));
  }
  std::vector<uint32_t> words(tensor.info->elements);
  RETURN_IF_ERROR(tensor.file->ReadBytes(*tensor.info, 0, tensor.info->bytes, words.data()));
  return words;
}

// Value i of `bits` bits in words that stand `stride` apart.
int BitsAt(const uint32_t* words, int64_t stride, int bits, int64_t i) {
  const int64_t at = i * bits;
  const int shift = static_cast<int>(at % 32);
  uint64_t value = words[at / 32 * stride];
  if (shift + bits > 32) value |= static_cast<uint64_t>(words[(at / 32 + 1) * stride]) << 32;
  return static_cast<int>(value >> shift & ((1u << bits) - 1));
}

// AWQ: where column 8 c + j stands in word c.
constexpr int kAwqSlot[8] = {0, 4, 1, 5, 2, 6, 3, 7};

// All that is known of a weight but its codes.
struct Parts {
  GptqScheme scheme;
  StoredLayout layout;
  int64_t groups = 0;
  std::vector<int> zeros;         // [groups * rows]
  std::vector<int32_t> group_of;  // [cols], empty where in order
};

int MiddleOf(int bits) { return 1 << (bits - 1); }

absl::Status ReadShape(const ModelFolder& folder, const std::string& name, Parts* p) {
  const TensorRef* codes = folder.Find(Part(name, "qweight"));
  CHECK(codes != nullptr);
  const std::vector<int64_t>& shape = codes->info->shape;
  const int bits = p->scheme.bits;
  if (shape.size() != 2 || shape[0] < 1 || shape[1] < 1 || shape[0] > kMostExtent || shape[1] > kMostExtent ||
      (!p->scheme.awq && shape[0] * 32 % bits != 0)) {
    return Invalid(*codes,
                   absl::StrCat("has shape ", ShapeText(shape), ", expected a matrix of words of ", bits, " bits"));
  }
  StoredLayout& layout = p->layout;
  layout.format = bits == 8 ? Format::kInt8 : Format::kInt4;
  layout.cols = p->scheme.awq ? shape[0] : shape[0] * 32 / bits;
  layout.rows = p->scheme.awq ? shape[1] * 8 : shape[1];
  layout.group = p->scheme.group < 0 ? layout.cols : p->scheme.group;
  if (layout.cols % layout.group != 0 || layout.group % 2 != 0 || layout.rows * bits % 32 != 0) {
    return Invalid(*codes, absl::StrCat("stands for [", layout.rows, ", ", layout.cols, "], which groups of ",
                                        layout.group, " and whole words of zeros do not fit"));
  }
  p->groups = layout.cols / layout.group;
  return absl::OkStatus();
}

absl::Status ReadZeros(const ModelFolder& folder, const std::string& name, Parts* p) {
  const int bits = p->scheme.bits;
  const int64_t row_words = p->layout.rows * bits / 32;
  ASSIGN_OR_RETURN(std::vector<uint32_t> words, ReadWords(folder, Part(name, "qzeros"), {p->groups, row_words}));
  const bool less_one = !p->scheme.awq && p->scheme.zeros_less_one;
  if (less_one && bits != 3) {
    // Whole words, as they were taken from: a carry crosses fields.
    const uint32_t ones = bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
    for (uint32_t& word : words) word += ones;
  }
  p->zeros.resize(p->groups * p->layout.rows);
  for (int64_t g = 0; g < p->groups; ++g) {
    for (int64_t o = 0; o < p->layout.rows; ++o) {
      const int64_t at = p->scheme.awq ? o / 8 * 8 + kAwqSlot[o % 8] : o;
      int zero = BitsAt(&words[g * row_words], 1, bits, at);
      if (less_one && bits == 3) zero = (zero + 1) & 7;
      p->zeros[g * p->layout.rows + o] = zero;
      p->layout.offsets |= zero != MiddleOf(bits);
    }
  }
  return absl::OkStatus();
}

absl::Status ReadOrder(const ModelFolder& folder, const std::string& name, Parts* p) {
  const std::string part = Part(name, "g_idx");
  if (p->scheme.awq || folder.Find(part) == nullptr) return absl::OkStatus();
  ASSIGN_OR_RETURN(const std::vector<uint32_t> words, ReadWords(folder, part, {p->layout.cols}));
  for (int64_t c = 0; c < p->layout.cols; ++c) {
    if (words[c] >= static_cast<uint64_t>(p->groups)) {
      return Invalid(*folder.Find(part), absl::StrCat("element ", c, " is ", static_cast<int32_t>(words[c]),
                                                      ", expected a group below ", p->groups));
    }
    p->layout.columns |= words[c] != c / p->layout.group;
  }
  if (p->layout.columns) p->group_of.assign(words.begin(), words.end());
  return absl::OkStatus();
}

absl::StatusOr<Parts> ReadParts(const ModelFolder& folder, const std::string& name) {
  Parts parts;
  ASSIGN_OR_RETURN(parts.scheme, SchemeOf(folder));
  RETURN_IF_ERROR(ReadShape(folder, name, &parts));
  RETURN_IF_ERROR(ReadZeros(folder, name, &parts));
  RETURN_IF_ERROR(ReadOrder(folder, name, &parts));
  return parts;
}

// Scales, and zeros as what is added: (middle - zero) * scale.
absl::Status ReadScales(const ModelFolder& folder, const std::string& name, const Parts& p, QuantizedWeight* w) {
  ASSIGN_OR_RETURN(const TensorRef tensor, folder.Require(Part(name, "scales"), {p.groups, w->rows}));
  if (!FormatOf(tensor.info->dtype)) {
    return Invalid(tensor, absl::StrCat("is ", std::string(NameOf(tensor.info->dtype)), ", expected F16, BF16 or F32"));
  }
  std::vector<float> scales(tensor.info->elements);
  RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, 0, tensor.info->elements, scales.data()));
  if (p.layout.offsets) w->offsets.resize(scales.size());
  for (int64_t g = 0; g < p.groups; ++g) {
    for (int64_t o = 0; o < w->rows; ++o) {
      const float scale = scales[g * w->rows + o];
      if (!std::isfinite(scale)) {
        return Invalid(tensor, absl::StrCat("element ", g * w->rows + o, " is ", scale, "; a weight must be finite"));
      }
      const int zero = p.zeros[g * w->rows + o];
      w->absmax[o * p.groups + g] = scale;
      if (p.layout.offsets) {
        w->offsets[o * p.groups + g] = static_cast<float>(MiddleOf(p.scheme.bits) - zero) * scale;
      }
    }
  }
  return absl::OkStatus();
}

// From columns to rows, narrower codes to nibbles of the same value.
void TransposeCodes(const std::vector<uint32_t>& words, const GptqScheme& scheme, QuantizedWeight* w) {
  const int shift = 8 - MiddleOf(scheme.bits);
  for (int64_t o = 0; o < w->rows; ++o) {
    for (int64_t i = 0; i < w->cols; ++i) {
      const int code = scheme.awq ? static_cast<int>(words[i * (w->rows / 8) + o / 8] >> (4 * kAwqSlot[o % 8]) & 15)
                                  : BitsAt(&words[o], w->rows, scheme.bits, i);
      const int64_t at = o * w->cols + i;
      if (w->format == Format::kInt8) {
        w->codes[at] = static_cast<uint8_t>(code - 128);
      } else {
        w->codes[at / 2] |= static_cast<uint8_t>((code + shift) << (at % 2 == 0 ? 4 : 0));
      }
    }
  }
}

}  // namespace

absl::StatusOr<GptqScheme> ParseGptqScheme(const nlohmann::json& config, const std::string& place) {
  const auto expect = [&](const char* key, const std::string& expected) {
    const std::string found = config.is_object() && config.contains(key) ? config[key].dump() : "nothing";
    return absl::InvalidArgumentError(
        absl::StrCat(place, ": quantization_config.", key, ": expected ", expected, ", found ", found));
  };
  if (!config.is_object()) return expect("quant_method", "an object around it");
  GptqScheme scheme;
  const nlohmann::json method = config.value("quant_method", nlohmann::json("gptq"));
  scheme.awq = method == "awq";
  if (!scheme.awq && method != "gptq") return expect("quant_method", "\"gptq\" or \"awq\"");
  const nlohmann::json bits = config.value("bits", config.value("w_bit", nlohmann::json(4)));
  if (bits != 4 && (scheme.awq || (bits != 2 && bits != 3 && bits != 8))) {
    return expect("bits", scheme.awq ? "4" : "2, 3, 4 or 8");
  }
  scheme.bits = bits.get<int>();
  const nlohmann::json group = config.value("group_size", config.value("q_group_size", nlohmann::json(128)));
  if (!group.is_number_integer() || group.get<int64_t>() == 0 || group.get<int64_t>() < -1 ||
      group.get<int64_t>() > kMostExtent) {
    return expect("group_size", "-1 or the weights of a group");
  }
  scheme.group = group.get<int64_t>();
  const auto flag = [&config](const char* key, bool otherwise) {
    const nlohmann::json value = config.value(key, nlohmann::json(otherwise));
    return value.is_boolean() ? value.get<bool>() : otherwise;
  };
  scheme.act_order = flag("desc_act", false);
  scheme.symmetric = scheme.awq ? !flag("zero_point", true) : flag("sym", true);
  if (scheme.awq) {
    const nlohmann::json version = config.value("version", nlohmann::json("gemm"));
    if (version != "gemm" && version != "GEMM") return expect("version", "\"gemm\"");
    return scheme;
  }
  const nlohmann::json format = config.value("checkpoint_format", nlohmann::json("gptq"));
  if (format != "gptq" && format != "gptq_v2" && !format.is_null()) {
    return expect("checkpoint_format", "\"gptq\" or \"gptq_v2\"");
  }
  scheme.zeros_less_one = format != "gptq_v2";
  return scheme;
}

StoredLayout PromisedLayout(const GptqScheme& scheme, int64_t rows, int64_t cols) {
  StoredLayout layout;
  layout.format = scheme.bits == 8 ? Format::kInt8 : Format::kInt4;
  layout.rows = rows;
  layout.cols = cols;
  layout.group = scheme.group < 0 || cols % scheme.group != 0 ? cols : scheme.group;
  layout.offsets = !scheme.symmetric;
  layout.columns = scheme.act_order;
  return layout;
}

bool HasGptqWeight(const ModelFolder& folder, std::string_view name) {
  return absl::EndsWith(std::string(name), ".weight") && folder.Find(Part(name, "qweight")) != nullptr;
}

std::vector<std::string> GptqParts(const ModelFolder& folder, std::string_view name) {
  std::vector<std::string> names;
  for (const char* suffix : {"qweight", "qzeros", "scales", "g_idx"}) {
    const std::string part = Part(name, suffix);
    if (folder.Find(part) != nullptr) names.push_back(part);
  }
  return names;
}

absl::StatusOr<StoredLayout> GptqLayout(const ModelFolder& folder, const std::string& name) {
  ASSIGN_OR_RETURN(const Parts parts, ReadParts(folder, name));
  return parts.layout;
}

absl::StatusOr<QuantizedWeight> ReadGptqWeight(const ModelFolder& folder, const std::string& name) {
  ASSIGN_OR_RETURN(Parts parts, ReadParts(folder, name));
  const StoredLayout& layout = parts.layout;
  QuantizedWeight w = MakeScaledWeight(layout.format, layout.rows, layout.cols, layout.group);
  w.column_blocks = std::move(parts.group_of);
  RETURN_IF_ERROR(ReadScales(folder, name, parts, &w));
  const std::string codes = Part(name, "qweight");
  ASSIGN_OR_RETURN(const std::vector<uint32_t> words, ReadWords(folder, codes, folder.Find(codes)->info->shape));
  TransposeCodes(words, parts.scheme, &w);
  return w;
}

}  // namespace thimble
