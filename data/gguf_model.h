// A GGUF file of a language model as the Hugging Face folder that says the same: configuration, names and layouts of
// tensors.
// Source: llama.cpp's model loader and its converter from Hugging Face folders.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "data/gguf_header.h"
#include "nlohmann/json.hpp"

namespace thimble {

// The linear_class of a bitnet model's quantization_config: its layers hold -1, 0 and 1 times their scale.
inline constexpr char kGgufTernaryClass[] = "gguf";
// The name of the activation, where it is not SiLU.
inline constexpr char kGgufActivationKey[] = "bitnet.hidden_activation";

// A config.json of a llama, qwen2, qwen3 or bitnet model. InvalidArgument, naming the key, for another architecture or
// value.
absl::StatusOr<nlohmann::json> GgufConfig(const GgufHeader& header);

// The file's tensors under their Hugging Face names, in file order, q_proj and k_proj of the llama architecture with
// their head_rows. InvalidArgument for a name that is none of a decoder's.
absl::StatusOr<std::vector<TensorInfo>> GgufModelTensors(const GgufHeader& header);

// "model.layers.3.self_attn.q_proj.weight" for "blk.3.attn_q.weight", and back; nullopt for any other.
std::optional<std::string> HuggingFaceTensorName(std::string_view gguf_name);
std::optional<std::string> GgufTensorName(std::string_view hugging_face_name);

// Whether rows of q_proj and k_proj stand in pairs in files of this architecture.
bool HasPairedRows(std::string_view architecture);

}  // namespace thimble
