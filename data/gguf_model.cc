#include "data/gguf_model.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "ops/check.h"
#include "ops/rope.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr int64_t kMost = INT32_MAX;
constexpr char kRopeDivisors[] = "rope_freqs.weight";

struct Architecture {
  const char* name;  // GGUF's and config.json's model_type
  const char* hugging_face;
  bool paired_rows;
};
constexpr Architecture kArchitectures[] = {
    {"llama", "LlamaForCausalLM", true},
    {"qwen2", "Qwen2ForCausalLM", false},
    {"qwen3", "Qwen3ForCausalLM", false},
    {"bitnet", "BitNetForCausalLM", false},
};

struct NamePair {
  const char* gguf;
  const char* hugging_face;
};
constexpr NamePair kModelNames[] = {
    {"token_embd", "model.embed_tokens"}, {"output_norm", "model.norm"}, {"output", "lm_head"}};
constexpr NamePair kLayerNames[] = {
    {"attn_norm", "input_layernorm"},     {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},       {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},  {"attn_q_norm", "self_attn.q_norm"},
    {"attn_k_norm", "self_attn.k_norm"},  {"ffn_norm", "post_attention_layernorm"},
    {"ffn_gate", "mlp.gate_proj"},        {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},        {"attn_sub_norm", "self_attn.attn_sub_norm"},
    {"ffn_sub_norm", "mlp.ffn_sub_norm"},
};

// "blk.3.attn_q.weight" into 3 and "attn_q" and ".weight"; layer -1 where the prefix is missing.
struct SplitName {
  int64_t layer = -1;
  std::string stem;
  std::string suffix;
};
std::optional<SplitName> Split(std::string_view name, std::string_view prefix) {
  SplitName split;
  const size_t dot = name.rfind('.');
  if (dot == std::string_view::npos) return std::nullopt;
  split.suffix = std::string(name.substr(dot));
  if (split.suffix != ".weight" && split.suffix != ".bias") return std::nullopt;
  name = name.substr(0, dot);
  if (name.substr(0, prefix.size()) == prefix) {
    name.remove_prefix(prefix.size());
    const size_t end = name.find('.');
    if (end == std::string_view::npos || !absl::SimpleAtoi(std::string(name.substr(0, end)), &split.layer) ||
        split.layer < 0 || absl::StrCat(split.layer) != std::string(name.substr(0, end))) {
      return std::nullopt;
    }
    name.remove_prefix(end + 1);
  }
  split.stem = std::string(name);
  return split;
}

absl::StatusOr<const Architecture*> FindArchitecture(const GgufHeader& header) {
  ASSIGN_OR_RETURN(const std::string name, header.String("general.architecture", ""));
  for (const Architecture& row : kArchitectures) {
    if (name == row.name) return &row;
  }
  return header.Error("general.architecture", "an architecture that Thimble trains: llama, qwen2, qwen3 or bitnet");
}

// The divisors of Llama 3's frequencies say no more than how they were made: with the parameters that all published
// models share, or not readable.
absl::Status ReadRopeDivisors(const GgufHeader& header, const TensorInfo& tensor, double theta, int64_t head_dim,
                              json* config) {
  const auto invalid = [&](const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(header.path(), ": tensor \"", kRopeDivisors, "\": ", what));
  };
  if (tensor.dtype != TensorDType::kF32 || tensor.elements != head_dim / 2) {
    return invalid(absl::StrCat("expected F32 [", head_dim / 2, "], found ", std::string(NameOf(tensor.dtype)), " ",
                                ShapeText(tensor.shape)));
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorFile> file,
                   TensorFile::OpenTable(header.path(), header.data_begin(), {tensor}));
  std::vector<float> divisors(static_cast<size_t>(tensor.elements));
  RETURN_IF_ERROR(file->ReadFloats(file->tensors()[0], 0, tensor.elements, divisors.data()));
  const double factor = divisors.back(), low = 1, high = 4, original = 8192;
  for (int64_t i = 0; i < tensor.elements; ++i) {
    const double wavelength = 2 * M_PI * std::pow(theta, 2 * static_cast<double>(i) / static_cast<double>(head_dim));
    double expected = factor;
    if (wavelength < original / high) {
      expected = 1;
    } else if (wavelength <= original / low) {
      const double t = (original / wavelength - low) / (high - low);
      expected = 1 / ((1 - t) / factor + t);
    }
    if (std::fabs(divisors[i] - expected) <= 1e-4 * expected) continue;
    return invalid(
        absl::StrFormat("entry %d is %g, expected %g as in Llama 3 (factor %g, low 1, high 4, original 8192)", i,
                        divisors[i], expected, factor));
  }
  (*config)["rope_scaling"] = {{"rope_type", "llama3"},
                               {"factor", factor},
                               {"low_freq_factor", low},
                               {"high_freq_factor", high},
                               {"original_max_position_embeddings", static_cast<int64_t>(original)}};
  return absl::OkStatus();
}

absl::Status ReadRope(const GgufHeader& header, const std::string& arch, int64_t head_dim, json* config) {
  ASSIGN_OR_RETURN(const double theta, header.Float(arch + ".rope.freq_base", 1e4));
  (*config)["rope_theta"] = theta;
  ASSIGN_OR_RETURN(const int64_t rotated, header.Integer(arch + ".rope.dimension_count", 1, kMost, head_dim));
  if (rotated != head_dim) {
    return header.Error(arch + ".rope.dimension_count", absl::StrCat(head_dim, ", the width of a head"));
  }
  ASSIGN_OR_RETURN(const std::string type, header.String(arch + ".rope.scaling.type", "none"));
  if (type != "none" && type != "linear" && type != "yarn") {
    return header.Error(arch + ".rope.scaling.type", "none, linear or yarn");
  }
  if (type != "none") {
    ASSIGN_OR_RETURN(const double factor, header.Float(arch + ".rope.scaling.factor", 1));
    (*config)["rope_scaling"] = {{"rope_type", type}, {"factor", factor}};
    const std::string key = arch + ".rope.scaling.original_context_length";
    if (header.Find(key) != nullptr) {
      ASSIGN_OR_RETURN(const int64_t original, header.Integer(key, 1, kMost));
      (*config)["rope_scaling"]["original_max_position_embeddings"] = original;
    }
  }
  for (const TensorInfo& tensor : header.tensors()) {
    if (tensor.name == kRopeDivisors) return ReadRopeDivisors(header, tensor, theta, head_dim, config);
  }
  return absl::OkStatus();
}

bool HasTensor(const GgufHeader& header, std::string_view name) {
  return std::any_of(header.tensors().begin(), header.tensors().end(),
                     [&](const TensorInfo& tensor) { return tensor.name == name; });
}

absl::Status ReadBitNet(const GgufHeader& header, json* config) {
  ASSIGN_OR_RETURN(const std::string activation, header.String(kGgufActivationKey, "silu"));
  if (activation != "silu" && activation != "relu2") return header.Error(kGgufActivationKey, "silu or relu2");
  (*config)["hidden_act"] = activation;
  (*config)["quantization_config"] = {
      {"quant_method", "bitnet"}, {"linear_class", kGgufTernaryClass}, {"quantization_mode", "offline"}};
  return absl::OkStatus();
}

absl::StatusOr<int64_t> VocabularySize(const GgufHeader& header, const std::string& arch) {
  if (const GgufValue* tokens = header.Find("tokenizer.ggml.tokens"); tokens != nullptr) return tokens->size();
  return header.Integer(arch + ".vocab_size", 1, kMost);
}

// What token ids there are becomes bos_token_id and eos_token_id, the end of a turn with the end of a text.
absl::Status ReadTokenIds(const GgufHeader& header, int64_t vocabulary, json* config) {
  json ends = json::array();
  for (const char* name : {"eos", "eot"}) {
    ASSIGN_OR_RETURN(const int64_t id, header.TokenId(absl::StrCat("tokenizer.ggml.", name, "_token_id"), vocabulary));
    if (id < 0) continue;
    if (std::find(ends.begin(), ends.end(), json(id)) == ends.end()) ends.push_back(id);
  }
  if (ends.size() == 1) (*config)["eos_token_id"] = ends[0];
  if (ends.size() > 1) (*config)["eos_token_id"] = ends;
  ASSIGN_OR_RETURN(const int64_t bos, header.TokenId("tokenizer.ggml.bos_token_id", vocabulary));
  if (bos >= 0) (*config)["bos_token_id"] = bos;
  return absl::OkStatus();
}

}  // namespace

bool HasPairedRows(std::string_view architecture) {
  return std::any_of(std::begin(kArchitectures), std::end(kArchitectures),
                     [&](const Architecture& row) { return row.paired_rows && architecture == row.name; });
}

std::optional<std::string> HuggingFaceTensorName(std::string_view gguf_name) {
  const std::optional<SplitName> split = Split(gguf_name, "blk.");
  if (!split) return std::nullopt;
  const bool in_layer = split->layer >= 0;
  const NamePair* begin = in_layer ? std::begin(kLayerNames) : std::begin(kModelNames);
  const NamePair* end = in_layer ? std::end(kLayerNames) : std::end(kModelNames);
  for (const NamePair* pair = begin; pair != end; ++pair) {
    if (split->stem != pair->gguf) continue;
    return absl::StrCat(in_layer ? absl::StrCat("model.layers.", split->layer, ".") : "", pair->hugging_face,
                        split->suffix);
  }
  return std::nullopt;
}

std::optional<std::string> GgufTensorName(std::string_view hugging_face_name) {
  const std::optional<SplitName> split = Split(hugging_face_name, "model.layers.");
  if (!split) return std::nullopt;
  const bool in_layer = split->layer >= 0;
  const NamePair* begin = in_layer ? std::begin(kLayerNames) : std::begin(kModelNames);
  const NamePair* end = in_layer ? std::end(kLayerNames) : std::end(kModelNames);
  for (const NamePair* pair = begin; pair != end; ++pair) {
    if (split->stem != pair->hugging_face) continue;
    return absl::StrCat(in_layer ? absl::StrCat("blk.", split->layer, ".") : "", pair->gguf, split->suffix);
  }
  return std::nullopt;
}

absl::StatusOr<json> GgufConfig(const GgufHeader& header) {
  ASSIGN_OR_RETURN(const Architecture* architecture, FindArchitecture(header));
  const std::string arch = architecture->name;
  json config = {{"architectures", {architecture->hugging_face}}, {"model_type", arch}, {"hidden_act", "silu"}};
  ASSIGN_OR_RETURN(const int64_t hidden, header.Integer(arch + ".embedding_length", 1, kMost));
  ASSIGN_OR_RETURN(const int64_t heads, header.Integer(arch + ".attention.head_count", 1, kMost));
  ASSIGN_OR_RETURN(const int64_t kv_heads, header.Integer(arch + ".attention.head_count_kv", 1, kMost, heads));
  ASSIGN_OR_RETURN(config["num_hidden_layers"], header.Integer(arch + ".block_count", 1, kMost));
  ASSIGN_OR_RETURN(config["intermediate_size"], header.Integer(arch + ".feed_forward_length", 1, kMost));
  ASSIGN_OR_RETURN(config["max_position_embeddings"], header.Integer(arch + ".context_length", 1, kMost));
  const std::string epsilon = arch + ".attention.layer_norm_rms_epsilon";
  if (header.Find(epsilon) == nullptr) return header.Error(epsilon, "an f32 above 0");
  ASSIGN_OR_RETURN(config["rms_norm_eps"], header.Float(epsilon, 0));
  ASSIGN_OR_RETURN(const int64_t head_dim,
                   header.Integer(arch + ".attention.key_length", 1, kMost, std::max<int64_t>(1, hidden / heads)));
  ASSIGN_OR_RETURN(const int64_t value_dim, header.Integer(arch + ".attention.value_length", 1, kMost, head_dim));
  if (value_dim != head_dim) {
    return header.Error(arch + ".attention.value_length", absl::StrCat(head_dim, ", the width of a head"));
  }
  if (head_dim % 2 != 0) return header.Error(arch + ".attention.key_length", "an even width of a head");
  for (const char* key : {".expert_count", ".attention.sliding_window"}) {
    ASSIGN_OR_RETURN(const int64_t count, header.Integer(arch + key, 0, kMost, 0));
    if (count != 0) return header.Error(arch + key, "0 or none: Thimble has no such layers in GGUF models");
  }
  ASSIGN_OR_RETURN(const int64_t vocabulary, VocabularySize(header, arch));
  config["hidden_size"] = hidden;
  config["num_attention_heads"] = heads;
  config["num_key_value_heads"] = kv_heads;
  config["head_dim"] = head_dim;
  config["vocab_size"] = vocabulary;
  // Where there is an output layer, whether it is the embedding again can only be seen from its bytes.
  config["tie_word_embeddings"] = true;
  if (arch == "llama") config["attention_bias"] = HasTensor(header, "blk.0.attn_q.bias");
  if (arch == "bitnet") RETURN_IF_ERROR(ReadBitNet(header, &config));
  RETURN_IF_ERROR(ReadRope(header, arch, head_dim, &config));
  RETURN_IF_ERROR(ReadTokenIds(header, vocabulary, &config));
  return config;
}

absl::StatusOr<std::vector<TensorInfo>> GgufModelTensors(const GgufHeader& header) {
  ASSIGN_OR_RETURN(const json config, GgufConfig(header));
  const bool paired = HasPairedRows(config["model_type"].get<std::string>());
  const int64_t head_dim = config["head_dim"].get<int64_t>();
  std::vector<TensorInfo> tensors;
  for (const TensorInfo& stored : header.tensors()) {
    if (stored.name == kRopeDivisors) continue;
    const std::optional<std::string> name = HuggingFaceTensorName(stored.name);
    if (!name) {
      return absl::InvalidArgumentError(absl::StrCat(header.path(), ": unexpected tensor \"", stored.name,
                                                     "\": the model of its metadata has no place for it"));
    }
    TensorInfo info = stored;
    info.name = *name;
    if (paired && (absl::StrContains(info.name, ".q_proj.") || absl::StrContains(info.name, ".k_proj."))) {
      if (info.shape[0] % head_dim != 0) {
        return absl::InvalidArgumentError(absl::StrCat(header.path(), ": tensor \"", stored.name, "\" has shape ",
                                                       ShapeText(info.shape), ", expected heads of ", head_dim,
                                                       " rows"));
      }
      info.head_rows = head_dim;
    }
    tensors.push_back(std::move(info));
  }
  return tensors;
}

}  // namespace thimble
