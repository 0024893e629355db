// The tokenizer in a GGUF file's metadata as the tokenizer.json and tokenizer_config.json that say the same.
// Source: llama.cpp's vocabulary loader (gpt2: byte-level BPE with named pre-tokenizers; llama: SentencePiece BPE).
#pragma once

#include "absl/status/statusor.h"
#include "data/gguf_header.h"
#include "nlohmann/json.hpp"

namespace thimble {

// InvalidArgument, naming the key, for another kind of tokenizer, an unknown pre-tokenizer or malformed lists.
absl::StatusOr<nlohmann::json> GgufTokenizerJson(const GgufHeader& header);
// bos_token, eos_token, add_bos_token, chat_template.
absl::StatusOr<nlohmann::json> GgufTokenizerConfig(const GgufHeader& header);

// The pre_tokenizer of a tokenizer.json for llama.cpp's name of one; null for a name that is not known here.
// `whole_words` says whether a word of the vocabulary is one token whatever the merges, `adds_bos` whether texts begin
// with BOS where the file does not say.
struct PreTokenizerOfName {
  nlohmann::json steps;
  bool whole_words = false;
  bool adds_bos = false;
};
PreTokenizerOfName GgufPreTokenizer(const std::string& name);

}  // namespace thimble
