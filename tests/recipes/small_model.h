// A base of 40 tokens with a tokenizer of letters, rows for it, and commands run on them.
#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/pre_tokenizer.h"
#include "data/unicode.h"
#include "recipes/commands/commands.h"
#include "tests/data/test_folder.h"

namespace thimble {

// "!" 0, <s> 1, </s> 2, a to z from 3 on, then space, ".", "?" and a line end.
inline std::string LetterTokenizerJson() {
  using nlohmann::json;
  json vocab = {{"!", 0}, {"<s>", 1}, {"</s>", 2}};
  int next = 3;
  for (char c = 'a'; c <= 'z'; ++c) vocab[std::string(1, c)] = next++;
  for (char c : {' ', '.', '?', '\n'}) {
    std::string text;
    AppendUtf8(ByteToCharacter(static_cast<unsigned char>(c)), text);
    vocab[text] = next++;
  }
  json file = {{"version", "1.0"},
               {"pre_tokenizer", {{"type", "ByteLevel"}, {"add_prefix_space", false}}},
               {"decoder", {{"type", "ByteLevel"}}},
               {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}};
  for (const char* token : {"<s>", "</s>"}) {
    file["added_tokens"].push_back({{"id", vocab[token]}, {"content", token}, {"special", true}});
  }
  return file.dump();
}

class SmallModelTest : public TestFolder {
 protected:
  void SetUp() override {
    TestFolder::SetUp();
    Write("rows.jsonl",
          "{\"prompt\": \"who has it?\", \"completion\": \"anna has it.\"}\n"
          "{\"prompt\": \"where?\", \"completion\": \"at home.\"}\n"
          "{\"prompt\": \"what is it?\", \"completion\": \"a kite.\"}\n"
          "{\"prompt\": \"when?\", \"completion\": \"at noon.\"}\n");
    Write("recipe.yaml", "model: {path: " + CopyModel("source", "base") +
                             "}\n"
                             "compute: f32\n"
                             "quantization: {format: nf4}\n"
                             "adapter: {type: lora, rank: 4}\n"
                             "data: {train: rows.jsonl, validation_share: 0.25, chat_format: plain, seq_len: 32}\n"
                             "optimizer: {learning_rate: 0.01}\n"
                             "training: {steps: 3, accumulation: 1}\n"
                             "output: {folder: run}\n");
  }

  // A copy of one of the folders under tests/golden/bnb_folder with a tokenizer.
  std::string CopyModel(const std::string& golden, const std::string& name) const {
    std::filesystem::copy(THIMBLE_SOURCE_DIR "/tests/golden/bnb_folder/" + golden, Path(name));
    Write(name + "/tokenizer.json", LetterTokenizerJson());
    Write(name + "/tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
    return Path(name);
  }

  int Thimble(const std::vector<std::string>& words) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunCommandLine(Commands(), words);
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return code;
  }
  // Standard output of a command as the one JSON object it must be.
  nlohmann::json Json() const { return nlohmann::json::parse(out_, nullptr, /*allow_exceptions=*/false); }

  // The columns of its longest line; characters of UTF-8 count once.
  static size_t LongestLine(const std::string& text) {
    size_t longest = 0;
    size_t columns = 0;
    for (char c : text) {
      columns = c == '\n' ? 0 : columns + ((c & 0xC0) == 0x80 ? 0 : 1);
      longest = std::max(longest, columns);
    }
    return longest;
  }

  std::string out_, err_;
};

}  // namespace thimble
