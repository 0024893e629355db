// Tokenizer files small enough to check by hand.
#pragma once

#include <cstdio>
#include <nlohmann/json.hpp>
#include <string>

#include "data/pre_tokenizer.h"
#include "data/unicode.h"

namespace thimble {

inline std::string StandInOfByte(int byte) {
  std::string text;
  AppendUtf8(ByteToCharacter(static_cast<unsigned char>(byte)), text);
  return text;
}

// All 256 bytes (id = byte), "he" 256, "ll" 257, "hell" 258, "hello" 259, " w" 260; <|end|> 261.
inline nlohmann::json ByteLevelFile() {
  using nlohmann::json;
  json vocab = json::object();
  for (int byte = 0; byte < 256; ++byte) vocab[StandInOfByte(byte)] = byte;
  vocab["he"] = 256;
  vocab["ll"] = 257;
  vocab["hell"] = 258;
  vocab["hello"] = 259;
  vocab["\u0120w"] = 260;
  json file;
  file["version"] = "1.0";
  file["added_tokens"] = json::array();
  file["added_tokens"].push_back({{"id", 261}, {"content", "<|end|>"}, {"special", true}, {"normalized", false}});
  file["pre_tokenizer"] = {{"type", "ByteLevel"}, {"add_prefix_space", false}};
  file["decoder"] = {{"type", "ByteLevel"}};
  file["model"] = {
      {"type", "BPE"}, {"vocab", vocab}, {"merges", json::array({"h e", "l l", "he ll", "hell o", "\u0120 w"})}};
  return file;
}

// SentencePiece style: <unk> 0, <s> 1, the bytes <0x00> to <0xFF> from 2 on, then U+2581 258, "a" 259, "b" 260,
// "ab" 261, U+2581 "ab" 262, U+2581 U+2581 263.
inline nlohmann::json SentencePieceFile() {
  using nlohmann::json;
  json vocab = json::object();
  vocab["<unk>"] = 0;
  vocab["<s>"] = 1;
  for (int byte = 0; byte < 256; ++byte) {
    char name[8];
    std::snprintf(name, sizeof(name), "<0x%02X>", byte);
    vocab[name] = byte + 2;
  }
  int next = 258;
  for (const char* piece : {"\u2581", "a", "b", "ab", "\u2581ab", "\u2581\u2581"}) vocab[piece] = next++;
  json file;
  file["version"] = "1.0";
  file["added_tokens"] = json::array();
  file["added_tokens"].push_back({{"id", 1}, {"content", "<s>"}, {"special", true}, {"normalized", false}});
  file["normalizer"] = json::parse(R"({"type": "Sequence", "normalizers": [
      {"type": "Prepend", "prepend": "\u2581"},
      {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]})");
  file["post_processor"] = json::parse(R"({"type": "TemplateProcessing",
      "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
      "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}})");
  file["decoder"] = json::parse(R"({"type": "Sequence", "decoders": [
      {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"},
      {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]})");
  file["model"] = {{"type", "BPE"},    {"unk_token", "<unk>"},
                   {"fuse_unk", true}, {"byte_fallback", true},
                   {"vocab", vocab},   {"merges", json::array({"a b", "\u2581 ab", "\u2581 \u2581"})}};
  return file;
}

}  // namespace thimble
