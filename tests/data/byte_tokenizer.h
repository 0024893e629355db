// A byte-level tokenizer without merges, one id a byte, and special tokens after them: small enough to write down.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/tokenizer.h"
#include "nlohmann/json.hpp"

namespace thimble {

// Id of byte b is b; special tokens count on from 256. `bos`, if not empty, is one of them, put first by the
// post-processor.
inline std::string ByteTokenizerJson(const std::vector<std::string>& special, const std::string& bos = "") {
  nlohmann::json vocab = nlohmann::json::object();
  int shifted = 256;
  for (int byte = 0; byte < 256; ++byte) {
    const bool visible = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    const int point = visible ? byte : shifted++;
    std::string text;
    if (point < 0x80) {
      text = std::string(1, static_cast<char>(point));
    } else {
      text = {static_cast<char>(0xC0 | (point >> 6)), static_cast<char>(0x80 | (point & 0x3F))};
    }
    vocab[text] = byte;
  }
  nlohmann::json added = nlohmann::json::array();
  for (size_t i = 0; i < special.size(); ++i) {
    vocab[special[i]] = 256 + i;
    added.push_back({{"id", 256 + i},
                     {"content", special[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", true}});
  }
  nlohmann::json json = {
      {"version", "1.0"},
      {"added_tokens", added},
      {"normalizer", nullptr},
      {"pre_tokenizer",
       {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"post_processor", nullptr},
      {"decoder", {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", true}}},
      {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", nlohmann::json::array()}}}};
  if (!bos.empty()) {
    json["post_processor"] = {
        {"type", "TemplateProcessing"},
        {"single", {{{"SpecialToken", {{"id", bos}, {"type_id", 0}}}}, {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}}},
        {"pair", {{{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, {{"Sequence", {{"id", "B"}, {"type_id", 1}}}}}},
        {"special_tokens", {{bos, {{"id", bos}, {"ids", {vocab[bos]}}, {"tokens", {bos}}}}}}};
  }
  return json.dump();
}

inline std::unique_ptr<Tokenizer> MakeByteTokenizer(const std::vector<std::string>& special,
                                                    const std::string& bos = "") {
  auto tokenizer = Tokenizer::FromJson(ByteTokenizerJson(special, bos), "byte tokenizer");
  return tokenizer.ok() ? *std::move(tokenizer) : nullptr;
}

}  // namespace thimble
