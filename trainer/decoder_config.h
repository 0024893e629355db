// What a decoder-only language model is made of: one struct of switches for all families. A family is a function from
// its config.json to this struct, plus the weight names in decoder.cc.
// Sources: the families' published configurations; Llama 2 (arXiv:2307.09288), Mistral 7B (arXiv:2310.06825),
// Qwen2 (arXiv:2407.10671), Qwen3 (arXiv:2505.09388), BitNet b1.58 2B4T (arXiv:2504.12285).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"
#include "ops/rope.h"
#include "ops/swiglu.h"

namespace thimble {

struct DecoderConfig {
  std::string model_type;  // "llama", "mistral", "qwen2", "qwen3", "bitnet"
  int64_t hidden_dim = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position = 0;
  float rms_norm_eps = 1e-6f;
  double rope_theta = 1e4;
  RopeScaling rope_scaling;
  bool tie_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  GateActivation activation = GateActivation::kSilu;
  bool sub_norms = false;        // BitNet: RMSNorm before the output and the down projection
  bool ternary = false;          // BitNet b1.58: all linear layers but the head are BitLinear (ops/bit_linear.h)
  bool qk_norm = false;          // RMSNorm over head_dim on q and k, before the rotation
  std::vector<int64_t> windows;  // per layer: number of visible keys, 0 for all
  float init_std = 0.02f;        // of fresh weights
  std::vector<int32_t> eos_token_ids;
  int32_t bos_token_id = -1;

  int64_t ParameterCount() const;
};

// Reads config.json in its older (rope_theta, rope_scaling, torch_dtype) and newer (rope_parameters, dtype,
// layer_types) form. `path` is named in errors. An unsupported architecture or value is refused by name.
absl::StatusOr<DecoderConfig> ParseDecoderConfig(const nlohmann::json& config, const std::string& path);

// "LlamaForCausalLM" of "llama".
std::string ArchitectureOf(const std::string& model_type);

// The quantization_config of a ternary model that holds master weights, or packed codes.
nlohmann::json TernaryQuantizationJson(bool packed = false);

// The config.json of a fresh model, such that ParseDecoderConfig gives the same struct and transformers loads it.
nlohmann::json DecoderConfigJson(const DecoderConfig& config, const std::string& dtype);

}  // namespace thimble
