#include "trainer/decoder_config.h"

#include <algorithm>
#include <cmath>
#include <initializer_list>
#include <limits>
#include <optional>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/gguf_model.h"
#include "ops/check.h"

namespace thimble {
namespace {

using nlohmann::json;

// Reads keys of one JSON object with errors that name file, key and what was found. null counts as absent.
class ConfigReader {
 public:
  ConfigReader(const json& object, std::string path) : object_(object), path_(std::move(path)) {}

  bool Has(const char* key) const { return object_.contains(key) && !object_[key].is_null(); }
  bool HasNull(const char* key) const { return object_.contains(key) && object_[key].is_null(); }
  const json& at(const char* key) const { return object_[key]; }

  absl::Status Error(const char* key, const std::string& what) const {
    const std::string found = Has(key) ? absl::StrCat(", found ", object_[key].dump()) : "";
    return absl::InvalidArgumentError(absl::StrCat(path_, ": \"", key, "\": ", what, found));
  }

  absl::Status Int(const char* key, std::optional<int64_t> absent, int64_t low, int64_t* out) const {
    if (!Has(key)) {
      if (!absent) return Error(key, "missing");
      *out = *absent;
      return absl::OkStatus();
    }
    const json& value = object_[key];
    if (!value.is_number_integer()) return Error(key, "expected an integer");
    const bool fits = !value.is_number_unsigned() ||
                      value.get<uint64_t>() <= static_cast<uint64_t>(std::numeric_limits<int32_t>::max());
    if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > std::numeric_limits<int32_t>::max()) {
      return Error(key, absl::StrCat("expected an integer of at least ", low));
    }
    *out = value.get<int64_t>();
    return absl::OkStatus();
  }

  absl::Status Number(const char* key, double absent, double* out) const {
    *out = absent;
    if (!Has(key)) return absl::OkStatus();
    if (!object_[key].is_number()) return Error(key, "expected a number");
    *out = object_[key].get<double>();
    if (!std::isfinite(*out)) return Error(key, "expected a finite number");
    return absl::OkStatus();
  }

  absl::Status Bool(const char* key, bool absent, bool* out) const {
    *out = absent;
    if (!Has(key)) return absl::OkStatus();
    if (!object_[key].is_boolean()) return Error(key, "expected true or false");
    *out = object_[key].get<bool>();
    return absl::OkStatus();
  }

  const std::string& path() const { return path_; }

 private:
  const json& object_;
  std::string path_;
};

struct Family {
  const char* model_type;
  const char* architecture;
  // When the key is absent.
  int64_t default_kv_heads = 0;  // 0: as many as heads
  int64_t default_head_dim = 0;  // 0: hidden / heads
  double default_rope_theta = 1e4;
  double default_norm_eps = 1e-6;
  bool qkv_bias = false;
  bool reads_attention_bias = false;
  bool qk_norm = false;
  bool has_windows = false;
  bool always_window = false;  // every layer slides when sliding_window is set
};
constexpr Family kFamilies[] = {
    {.model_type = "llama", .architecture = "LlamaForCausalLM", .reads_attention_bias = true},
    {.model_type = "mistral",
     .architecture = "MistralForCausalLM",
     .default_kv_heads = 8,
     .has_windows = true,
     .always_window = true},
    {.model_type = "qwen2",
     .architecture = "Qwen2ForCausalLM",
     .default_kv_heads = 32,
     .qkv_bias = true,
     .has_windows = true},
    {.model_type = "qwen3",
     .architecture = "Qwen3ForCausalLM",
     .default_kv_heads = 32,
     .default_head_dim = 128,
     .reads_attention_bias = true,
     .qk_norm = true,
     .has_windows = true},
    {.model_type = "bitnet",
     .architecture = "BitNetForCausalLM",
     .default_kv_heads = 5,
     .default_rope_theta = 5e5,
     .default_norm_eps = 1e-5,
     .reads_attention_bias = true},
};

absl::StatusOr<const Family*> FindFamily(const ConfigReader& reader) {
  if (!reader.Has("model_type") || !reader.at("model_type").is_string()) {
    return reader.Error("model_type", "expected one of llama, mistral, qwen2, qwen3, bitnet");
  }
  const std::string type = reader.at("model_type").get<std::string>();
  for (const Family& family : kFamilies) {
    if (type != family.model_type) continue;
    if (reader.Has("architectures")) {
      const json& names = reader.at("architectures");
      const bool known = names.is_array() && names.size() == 1 && names[0].is_string() &&
                         names[0].get<std::string>() == family.architecture;
      if (!known) return reader.Error("architectures", absl::StrCat("expected [\"", family.architecture, "\"]"));
    }
    return &family;
  }
  return reader.Error("model_type", "unsupported architecture; Thimble trains llama, mistral, qwen2, qwen3 and bitnet");
}

absl::Status ReadRopeScaling(const ConfigReader& reader, const json& object, const char* key, DecoderConfig* config) {
  if (!object.is_object()) return reader.Error(key, "expected an object");
  const ConfigReader rope(object, absl::StrCat(reader.path(), ": ", key));
  std::string type = "default";
  for (const char* name : {"rope_type", "type"}) {
    if (!rope.Has(name)) continue;
    if (!object[name].is_string()) return rope.Error(name, "expected a string");
    type = object[name].get<std::string>();
    break;
  }
  RETURN_IF_ERROR(rope.Number("rope_theta", config->rope_theta, &config->rope_theta));
  RopeScaling& scaling = config->rope_scaling;
  if (type == "default") return absl::OkStatus();
  if (type == "linear") {
    scaling.type = RopeScaling::Type::kLinear;
  } else if (type == "llama3") {
    scaling.type = RopeScaling::Type::kLlama3;
  } else if (type == "yarn") {
    scaling.type = RopeScaling::Type::kYarn;
  } else {
    return rope.Error(rope.Has("rope_type") ? "rope_type" : "type",
                      "unsupported; Thimble knows default, linear, llama3 and yarn");
  }
  const auto number = [&](const char* name, float* out) {
    double value;
    RETURN_IF_ERROR(rope.Number(name, *out, &value));
    *out = static_cast<float>(value);
    return absl::OkStatus();
  };
  int64_t original = 0;
  RETURN_IF_ERROR(reader.Int("original_max_position_embeddings", 0, 1, &original));
  if (original == 0) RETURN_IF_ERROR(rope.Int("original_max_position_embeddings", config->max_position, 1, &original));
  scaling.original_max_position = original;
  if (!rope.Has("factor") && type != "yarn") return rope.Error("factor", "missing");
  scaling.factor = static_cast<float>(static_cast<double>(config->max_position) / static_cast<double>(original));
  RETURN_IF_ERROR(number("factor", &scaling.factor));
  if (!(scaling.factor >= 1)) return rope.Error("factor", "expected a number of at least 1");
  RETURN_IF_ERROR(number("low_freq_factor", &scaling.low_freq_factor));
  RETURN_IF_ERROR(number("high_freq_factor", &scaling.high_freq_factor));
  if (type == "llama3" && !(scaling.high_freq_factor > scaling.low_freq_factor)) {
    return rope.Error("high_freq_factor", "expected more than low_freq_factor");
  }
  RETURN_IF_ERROR(number("beta_fast", &scaling.beta_fast));
  RETURN_IF_ERROR(number("beta_slow", &scaling.beta_slow));
  RETURN_IF_ERROR(number("attention_factor", &scaling.attention_factor));
  RETURN_IF_ERROR(number("mscale", &scaling.mscale));
  RETURN_IF_ERROR(number("mscale_all_dim", &scaling.mscale_all_dim));
  return rope.Bool("truncate", true, &scaling.truncate);
}

absl::Status ReadRope(const ConfigReader& reader, const Family& family, DecoderConfig* config) {
  RETURN_IF_ERROR(reader.Number("rope_theta", family.default_rope_theta, &config->rope_theta));
  // A non-null rope_scaling beats rope_parameters.
  for (const char* key : {"rope_scaling", "rope_parameters"}) {
    if (!reader.Has(key)) continue;
    RETURN_IF_ERROR(ReadRopeScaling(reader, reader.at(key), key, config));
    break;
  }
  if (!(config->rope_theta > 1)) return reader.Error("rope_theta", "expected a number above 1");
  return absl::OkStatus();
}

absl::Status ReadWindows(const ConfigReader& reader, const Family& family, DecoderConfig* config) {
  config->windows.assign(config->num_layers, 0);
  if (!family.has_windows) return absl::OkStatus();
  int64_t window = 0;  // an explicit null means none
  if (!reader.HasNull("sliding_window")) RETURN_IF_ERROR(reader.Int("sliding_window", 4096, 1, &window));
  bool use_window = family.always_window;
  int64_t first_layer = 0;
  if (!family.always_window) {
    RETURN_IF_ERROR(reader.Bool("use_sliding_window", false, &use_window));
    RETURN_IF_ERROR(reader.Int("max_window_layers", 28, 0, &first_layer));
  }
  if (!reader.Has("layer_types")) {
    for (int64_t i = first_layer; use_window && i < config->num_layers; ++i) config->windows[i] = window;
    return absl::OkStatus();
  }
  const json& types = reader.at("layer_types");
  if (!types.is_array() || static_cast<int64_t>(types.size()) != config->num_layers) {
    return reader.Error("layer_types", absl::StrCat("expected a list of ", config->num_layers, " names"));
  }
  for (int64_t i = 0; i < config->num_layers; ++i) {
    if (types[i] == "sliding_attention") {
      if (window == 0) return reader.Error("sliding_window", "missing though layer_types has sliding_attention");
      config->windows[i] = window;
    } else if (types[i] != "full_attention") {
      return reader.Error("layer_types", absl::StrCat("layer ", i, " is of an unsupported type"));
    }
  }
  return absl::OkStatus();
}

absl::Status ReadShape(const ConfigReader& reader, const Family& family, DecoderConfig* config) {
  RETURN_IF_ERROR(reader.Int("hidden_size", std::nullopt, 1, &config->hidden_dim));
  RETURN_IF_ERROR(reader.Int("num_hidden_layers", std::nullopt, 1, &config->num_layers));
  RETURN_IF_ERROR(reader.Int("num_attention_heads", std::nullopt, 1, &config->num_heads));
  RETURN_IF_ERROR(reader.Int("intermediate_size", std::nullopt, 1, &config->intermediate_dim));
  RETURN_IF_ERROR(reader.Int("vocab_size", std::nullopt, 1, &config->vocab_size));
  RETURN_IF_ERROR(reader.Int("max_position_embeddings", 2048, 1, &config->max_position));
  // The key absent means the family's default; an explicit null means as many as heads.
  const bool family_default = family.default_kv_heads != 0 && !reader.HasNull("num_key_value_heads");
  RETURN_IF_ERROR(reader.Int("num_key_value_heads", family_default ? family.default_kv_heads : config->num_heads, 1,
                             &config->num_kv_heads));
  if (config->num_heads % config->num_kv_heads != 0) {
    return reader.Error("num_key_value_heads",
                        absl::StrCat("expected a divisor of num_attention_heads (", config->num_heads, ")"));
  }
  int64_t head_dim = family.default_head_dim;
  if (head_dim == 0 || reader.HasNull("head_dim")) {
    if (!reader.Has("head_dim") && config->hidden_dim % config->num_heads != 0) {
      return reader.Error("hidden_size", "expected a multiple of num_attention_heads");
    }
    head_dim = config->hidden_dim / config->num_heads;
  }
  RETURN_IF_ERROR(reader.Int("head_dim", head_dim, 1, &config->head_dim));
  if (config->head_dim % 2 != 0) return reader.Error("head_dim", "expected an even number");
  double value;
  RETURN_IF_ERROR(reader.Number("rms_norm_eps", family.default_norm_eps, &value));
  if (!(value > 0)) return reader.Error("rms_norm_eps", "expected a number above 0");
  config->rms_norm_eps = static_cast<float>(value);
  RETURN_IF_ERROR(reader.Number("initializer_range", 0.02, &value));
  config->init_std = static_cast<float>(value);
  return absl::OkStatus();
}

absl::Status ReadActivation(const ConfigReader& reader, DecoderConfig* config) {
  const bool bitnet = config->model_type == "bitnet";
  if (bitnet && (!reader.Has("hidden_act") || reader.at("hidden_act") == "relu2")) {
    config->activation = GateActivation::kReluSquared;
  } else if (reader.Has("hidden_act") && reader.at("hidden_act") != "silu") {
    return reader.Error("hidden_act",
                        bitnet ? "unsupported; Thimble knows silu and relu2" : "unsupported; Thimble knows silu");
  }
  return absl::OkStatus();
}

// Without a quantization_config, or with that of bitsandbytes, BitNet's architecture computes in full precision.
absl::Status ReadBitNet(const ConfigReader& reader, DecoderConfig* config) {
  config->sub_norms = true;
  if (!reader.Has("quantization_config")) return absl::OkStatus();
  const json& object = reader.at("quantization_config");
  if (!object.is_object()) return reader.Error("quantization_config", "expected an object");
  if (object.value("quant_method", json()) == "bitsandbytes") return absl::OkStatus();
  const ConfigReader stored(object, absl::StrCat(reader.path(), ": quantization_config"));
  const auto one_of = [&](const char* key, const char* absent, std::initializer_list<const char*> known) {
    const std::string found = stored.Has(key) && object[key].is_string() ? object[key].get<std::string>()
                              : stored.Has(key)                          ? ""
                                                                         : absent;
    for (const char* name : known) {
      if (found == name) return absl::OkStatus();
    }
    return stored.Error(key, absl::StrCat("unsupported; Thimble knows ", absl::StrJoin(known, " and ")));
  };
  RETURN_IF_ERROR(one_of("quant_method", "", {"bitnet"}));
  RETURN_IF_ERROR(one_of("linear_class", "bitlinear", {"bitlinear", "autobitlinear", kGgufTernaryClass}));
  RETURN_IF_ERROR(one_of("quantization_mode", "offline", {"offline", "online"}));
  if (stored.Has("modules_to_not_convert")) return stored.Error("modules_to_not_convert", "unsupported; expected null");
  bool own_norms;
  RETURN_IF_ERROR(stored.Bool("use_rms_norm", false, &own_norms));
  if (own_norms) return stored.Error("use_rms_norm", "unsupported; expected false");
  config->ternary = true;
  return absl::OkStatus();
}

absl::Status RefuseUnsupported(const ConfigReader& reader) {
  double partial;
  RETURN_IF_ERROR(reader.Number("partial_rotary_factor", 1, &partial));
  if (partial != 1) return reader.Error("partial_rotary_factor", "unsupported; expected 1");
  double dropout;
  RETURN_IF_ERROR(reader.Number("attention_dropout", 0, &dropout));
  if (dropout != 0) return reader.Error("attention_dropout", "unsupported; expected 0");
  int64_t tensor_parallel;
  RETURN_IF_ERROR(reader.Int("pretraining_tp", 1, 1, &tensor_parallel));
  return absl::OkStatus();
}

absl::Status ReadTokenIds(const ConfigReader& reader, DecoderConfig* config) {
  if (reader.Has("bos_token_id") && reader.at("bos_token_id").is_number_integer()) {
    config->bos_token_id = reader.at("bos_token_id").get<int32_t>();
  }
  if (!reader.Has("eos_token_id")) return absl::OkStatus();
  const json& eos = reader.at("eos_token_id");
  const json list = eos.is_array() ? eos : json::array({eos});
  for (const json& id : list) {
    if (!id.is_number_integer()) return reader.Error("eos_token_id", "expected an id or a list of ids");
    config->eos_token_ids.push_back(id.get<int32_t>());
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecoderConfig> ParseDecoderConfig(const json& object, const std::string& path) {
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(path, ": expected a JSON object"));
  const ConfigReader reader(object, path);
  ASSIGN_OR_RETURN(const Family* family, FindFamily(reader));
  DecoderConfig config;
  config.model_type = family->model_type;
  RETURN_IF_ERROR(ReadShape(reader, *family, &config));
  RETURN_IF_ERROR(ReadActivation(reader, &config));
  RETURN_IF_ERROR(RefuseUnsupported(reader));
  if (config.model_type == "bitnet") RETURN_IF_ERROR(ReadBitNet(reader, &config));
  RETURN_IF_ERROR(ReadRope(reader, *family, &config));
  RETURN_IF_ERROR(ReadWindows(reader, *family, &config));
  RETURN_IF_ERROR(reader.Bool("tie_word_embeddings", false, &config.tie_embeddings));
  bool attention_bias = false;
  if (family->reads_attention_bias) RETURN_IF_ERROR(reader.Bool("attention_bias", false, &attention_bias));
  if (config.model_type == "llama") RETURN_IF_ERROR(reader.Bool("mlp_bias", false, &config.mlp_bias));
  config.qkv_bias = family->qkv_bias || attention_bias;
  config.o_bias = attention_bias;
  config.qk_norm = family->qk_norm;
  RETURN_IF_ERROR(ReadTokenIds(reader, &config));
  return config;
}

std::string ArchitectureOf(const std::string& model_type) {
  for (const Family& family : kFamilies) {
    if (model_type == family.model_type) return family.architecture;
  }
  return "";
}

int64_t DecoderConfig::ParameterCount() const {
  const int64_t q = num_heads * head_dim;
  const int64_t kv = num_kv_heads * head_dim;
  int64_t layer = 2 * hidden_dim * (q + kv) + 3 * hidden_dim * intermediate_dim + 2 * hidden_dim;
  if (qkv_bias) layer += q + 2 * kv;
  if (o_bias) layer += hidden_dim;
  if (mlp_bias) layer += 2 * intermediate_dim + hidden_dim;
  if (qk_norm) layer += 2 * head_dim;
  if (sub_norms) layer += q + intermediate_dim;
  return num_layers * layer + hidden_dim + vocab_size * hidden_dim * (tie_embeddings ? 1 : 2);
}

}  // namespace thimble
