#include "recipes/served_options.h"

#include <fnmatch.h>

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "data/quantize_folder.h"
#include "ops/check.h"
#include "ops/quantize_merged.h"
#include "ops/quantize_scaled.h"
#include "recipes/nearest_name.h"
#include "recipes/recipe_options.h"

namespace thimble {
namespace {

using recipe::Qat;
using recipe::Recipe;

struct Exception {
  std::string pattern;
  std::optional<Format> format;  // nullopt: none
};

// A matrix of the model, without the ".weight" of its name.
struct NamedMatrix {
  std::string name;
  int64_t cols;
};

std::vector<NamedMatrix> MatricesOf(const DecoderConfig& c) {
  std::vector<NamedMatrix> matrices = {{"model.embed_tokens", c.hidden_dim}};
  if (!c.tie_embeddings) matrices.push_back({"lm_head", c.hidden_dim});
  for (int64_t i = 0; i < c.num_layers; ++i) {
    for (const std::string& linear : LinearNames()) {
      const bool mlp = linear == "gate_proj" || linear == "up_proj" || linear == "down_proj";
      const int64_t cols = linear == "o_proj"      ? c.num_heads * c.head_dim
                           : linear == "down_proj" ? c.intermediate_dim
                                                   : c.hidden_dim;
      matrices.push_back({absl::StrCat("model.layers.", i, mlp ? ".mlp." : ".self_attn.", linear), cols});
    }
  }
  return matrices;
}

bool Matches(const std::string& pattern, const std::string& name) {
  return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

absl::Status Malformed(const std::string& entry, const std::string& why) {
  return absl::InvalidArgumentError(absl::StrCat("qat.tensors: \"", entry, "\": ", why,
                                                 "; expected, for example, \"model.embed_tokens q8_0\" or "
                                                 "\"*.down_proj none\""));
}

absl::StatusOr<Exception> ParseException(const std::string& entry, const std::vector<NamedMatrix>& matrices) {
  const std::vector<std::string> parts = absl::StrSplit(entry, ' ', absl::SkipEmpty());
  if (parts.size() != 2) return Malformed(entry, "this is not a pattern and a type");
  Exception exception{parts[0], std::nullopt};
  std::vector<std::string> types = {"none"};
  for (int f = 0; f < kFormats; ++f) {
    const auto format = static_cast<Format>(f);
    if (!CanQuantizeMerged(format) || HasScales(format)) continue;
    types.emplace_back(InfoOf(format).name);
    if (parts[1] == types.back()) exception.format = format;
  }
  if (!exception.format && parts[1] != "none") {
    return Malformed(
        entry, absl::StrCat("\"", parts[1], "\" is none of ", absl::StrJoin(types, ", "), DidYouMean(parts[1], types)));
  }
  bool any = false;
  for (const NamedMatrix& matrix : matrices) {
    if (!Matches(exception.pattern, matrix.name)) continue;
    any = true;
    const int block = exception.format ? InfoOf(*exception.format).values_per_block : 1;
    if (matrix.cols % block == 0) continue;
    return Malformed(entry, absl::StrCat("rows of ", matrix.name, " have ", matrix.cols,
                                         " values, which are no whole blocks of ", block));
  }
  if (!any) return Malformed(entry, "no matrix of the model has such a name");
  return exception;
}

absl::Status CheckGroups(const Quantize4BitOptions& scheme, const std::vector<NamedMatrix>& matrices) {
  for (const NamedMatrix& matrix : matrices) {
    if (!IsDecoderLinear(absl::StrCat(matrix.name, ".weight"))) continue;
    if (GroupOf(scheme.format, scheme.block_size, matrix.cols) > 0) continue;
    return absl::InvalidArgumentError(absl::StrCat("qat.format: rows of ", matrix.name, " have ", matrix.cols,
                                                   " values, which are no whole groups of ",
                                                   scheme.block_size == 0 ? 2 : scheme.block_size));
  }
  return absl::OkStatus();
}

// "q4_k_m" of FORMAT_Q4_K_M.
const GgufMix* MixNamed(const std::string& enum_name, const char* prefix) {
  const GgufMix* mix = FindGgufMix(absl::AsciiStrToLower(absl::StripPrefix(enum_name, prefix)));
  CHECK(mix != nullptr) << enum_name;
  return mix;
}

}  // namespace

std::optional<Quantize4BitOptions> QatScheme(const Recipe& recipe) {
  // nvfp4 is GGUF's here, not that of folders.
  if (!recipe.has_qat() || QatMix(recipe) != nullptr) return std::nullopt;
  return WeightFormatNamed(Qat::Format_Name(recipe.qat().format()));
}

const GgufMix* QatMix(const Recipe& recipe) {
  if (!recipe.has_qat()) return nullptr;
  return FindGgufMix(absl::AsciiStrToLower(absl::StripPrefix(Qat::Format_Name(recipe.qat().format()), "FORMAT_")));
}

const GgufMix* ExportedMix(const Recipe& recipe) {
  const recipe::Export& from = recipe.output().export_();
  if (from.has_gguf_type()) return MixNamed(recipe::Export::GgufType_Name(from.gguf_type()), "GGUF_TYPE_");
  if (QatMix(recipe) != nullptr) return QatMix(recipe);
  return MixNamed(recipe::Export::Dtype_Name(from.dtype()), "DTYPE_");
}

absl::StatusOr<ServedOptions> ServedOptionsOf(const Recipe& recipe, const DecoderConfig& config) {
  if (config.ternary) {
    return absl::InvalidArgumentError(
        "qat.format: this model computes with ternary weights already (bitnet); leave the section qat out");
  }
  const std::vector<NamedMatrix> matrices = MatricesOf(config);
  ServedOptions options;
  if (recipe.qat().activations() == Qat::ACTIVATIONS_INT8) options.activations = ActivationGrid::kInt8;
  if (recipe.qat().activations() == Qat::ACTIVATIONS_FP8) options.activations = ActivationGrid::kE4M3;
  if (const std::optional<Quantize4BitOptions> scheme = QatScheme(recipe)) {
    RETURN_IF_ERROR(CheckGroups(*scheme, matrices));
    options.format_of = [scheme](const std::string& name, int64_t, int64_t) -> std::optional<ServedFormat> {
      if (!IsDecoderLinear(name)) return std::nullopt;
      return ServedFormat{scheme->format, scheme->block_size};
    };
    return options;
  }
  std::vector<Exception> exceptions;
  for (const std::string& entry : recipe.qat().tensors()) {
    ASSIGN_OR_RETURN(Exception exception, ParseException(entry, matrices));
    exceptions.push_back(std::move(exception));
  }
  const GgufMix* mix = QatMix(recipe);
  options.format_of = [exceptions, mix, layers = config.num_layers, tied = config.tie_embeddings](
                          const std::string& name, int64_t, int64_t cols) -> std::optional<ServedFormat> {
    const std::string module(absl::StripSuffix(name, ".weight"));
    for (auto exception = exceptions.rbegin(); exception != exceptions.rend(); ++exception) {
      if (!Matches(exception->pattern, module)) continue;
      if (!exception->format) return std::nullopt;
      return ServedFormat{*exception->format};
    }
    return ServedFormat{FormatOf(GgufTensorType(*mix, name, layers, cols, tied)).value()};
  };
  return options;
}

}  // namespace thimble
