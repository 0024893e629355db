// A loaded tokenizer, taken apart: what tokenizer_json.cc reads and tokenizer.cc runs.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "data/added_tokens.h"
#include "data/bpe.h"
#include "data/normalizer.h"
#include "data/pre_tokenizer.h"
#include "data/token_decoder.h"
#include "data/vocabulary.h"

namespace thimble {

struct TokenizerParts {
  Vocabulary vocabulary;  // of the model
  BpeModel model;
  std::vector<AddedToken> added;
  StringMap<int32_t> added_ids;
  absl::flat_hash_map<int32_t, size_t> added_by_id;  // index into `added`
  absl::flat_hash_set<int32_t> special;
  AddedTokenMatcher raw_matcher;         // on the text as it comes
  AddedTokenMatcher normalized_matcher;  // on normalised text
  std::vector<NormalizerStep> normalizer;
  PreTokenizer pre_tokenizer{{}};
  std::vector<DecoderStep> decoder;
  std::vector<int32_t> post_template;  // what add_special_tokens gives: ids, and kSequence for the text's own tokens
  std::vector<std::string> warnings;

  static constexpr int32_t kSequence = -1;
};

// Reads and checks a whole tokenizer.json. Errors begin with `name` and the place in the file.
absl::StatusOr<std::unique_ptr<TokenizerParts>> ReadTokenizerJson(std::string_view json, const std::string& name);

}  // namespace thimble
