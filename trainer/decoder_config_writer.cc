// config.json of a fresh model.
#include <algorithm>

#include "absl/strings/numbers.h"
#include "absl/strings/str_format.h"
#include "trainer/decoder_config.h"

namespace thimble {
namespace {

using nlohmann::json;

// The double that a person would have written for this float: 1e-05, not 9.999999747378752e-06.
double ShortDouble(float value) {
  double parsed = value;
  const bool read = absl::SimpleAtod(absl::StrFormat("%.7g", value), &parsed);
  return read && static_cast<float>(parsed) == value ? parsed : value;
}

json RopeScalingJson(const RopeScaling& scaling) {
  json object;
  object["factor"] = ShortDouble(scaling.factor);
  if (scaling.type == RopeScaling::Type::kLinear) {
    object["rope_type"] = "linear";
    return object;
  }
  object["original_max_position_embeddings"] = scaling.original_max_position;
  if (scaling.type == RopeScaling::Type::kLlama3) {
    object["rope_type"] = "llama3";
    object["low_freq_factor"] = ShortDouble(scaling.low_freq_factor);
    object["high_freq_factor"] = ShortDouble(scaling.high_freq_factor);
    return object;
  }
  object["rope_type"] = "yarn";
  object["beta_fast"] = ShortDouble(scaling.beta_fast);
  object["beta_slow"] = ShortDouble(scaling.beta_slow);
  object["truncate"] = scaling.truncate;
  if (scaling.attention_factor != 0) object["attention_factor"] = ShortDouble(scaling.attention_factor);
  if (scaling.mscale != 0) object["mscale"] = ShortDouble(scaling.mscale);
  if (scaling.mscale_all_dim != 0) object["mscale_all_dim"] = ShortDouble(scaling.mscale_all_dim);
  return object;
}

// The families that know windows get them spelled out: an absent key would mean the family's default.
void AddWindows(const DecoderConfig& config, json* object) {
  if (config.model_type == "llama" || config.model_type == "bitnet") return;
  int64_t window = 0;
  json types = json::array();
  for (const int64_t of_layer : config.windows) {
    window = std::max(window, of_layer);
    types.push_back(of_layer > 0 ? "sliding_attention" : "full_attention");
  }
  (*object)["sliding_window"] = window > 0 ? json(window) : json(nullptr);
  (*object)["layer_types"] = types;
  if (config.model_type != "mistral") (*object)["use_sliding_window"] = window > 0;
}

}  // namespace

json TernaryQuantizationJson(bool packed) {
  return {{"quant_method", "bitnet"},
          {"linear_class", "autobitlinear"},
          {"quantization_mode", packed ? "offline" : "online"}};
}

json DecoderConfigJson(const DecoderConfig& config, const std::string& dtype) {
  json object;
  object["architectures"] = json::array({ArchitectureOf(config.model_type)});
  object["model_type"] = config.model_type;
  object["hidden_size"] = config.hidden_dim;
  object["num_hidden_layers"] = config.num_layers;
  object["num_attention_heads"] = config.num_heads;
  object["num_key_value_heads"] = config.num_kv_heads;
  object["head_dim"] = config.head_dim;
  object["intermediate_size"] = config.intermediate_dim;
  object["vocab_size"] = config.vocab_size;
  object["max_position_embeddings"] = config.max_position;
  object["rms_norm_eps"] = ShortDouble(config.rms_norm_eps);
  object["rope_theta"] = config.rope_theta;
  if (config.rope_scaling.type != RopeScaling::Type::kNone) {
    object["rope_scaling"] = RopeScalingJson(config.rope_scaling);
  }
  AddWindows(config, &object);
  object["hidden_act"] = config.activation == GateActivation::kSilu ? "silu" : "relu2";
  if (config.ternary) object["quantization_config"] = TernaryQuantizationJson();
  object["initializer_range"] = ShortDouble(config.init_std);
  object["tie_word_embeddings"] = config.tie_embeddings;
  object["torch_dtype"] = dtype;
  object["attention_bias"] = config.o_bias;
  object["mlp_bias"] = config.mlp_bias;
  if (config.bos_token_id >= 0) object["bos_token_id"] = config.bos_token_id;
  if (config.eos_token_ids.size() == 1) object["eos_token_id"] = config.eos_token_ids[0];
  if (config.eos_token_ids.size() > 1) object["eos_token_id"] = config.eos_token_ids;
  return object;
}

}  // namespace thimble
