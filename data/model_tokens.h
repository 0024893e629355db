// The special tokens and the chat template that a model folder states beside its tokenizer.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/tokenizer.h"

namespace thimble {

struct ModelTokens {
  std::string bos_token, eos_token;  // empty: none
  int32_t bos_id = -1, eos_id = -1;  // -1: none
  bool add_bos = false;       // plain text starts with BOS: tokenizer_config's add_bos_token, else post-processor
  std::string chat_template;  // chat_template.jinja, else tokenizer_config's (named "default"); empty: none
};

// Reads tokenizer_config.json, special_tokens_map.json, chat_template.jinja and generation_config.json / config.json
// (eos_token_id) in `folder`, each if present, or the metadata of a GGUF file. InvalidArgument when one is malformed.
absl::StatusOr<ModelTokens> LoadModelTokens(const std::string& folder, const Tokenizer& tokenizer);

}  // namespace thimble
