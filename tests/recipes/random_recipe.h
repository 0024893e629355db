// Random models, rows and recipes, so small that a run takes a moment: every memory policy with every kind of training.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"

namespace thimble {

// splitmix64. Source: Steele, Lea, Flood 2014, doi:10.1145/2714064.2660195.
class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t x = state_ += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
  }
  int64_t Below(int64_t n) { return static_cast<int64_t>(Next() % static_cast<uint64_t>(n)); }
  int64_t Between(int64_t low, int64_t high) { return low + Below(high - low + 1); }
  bool OneIn(int64_t n) { return Below(n) == 0; }
  template <typename T>
  T Of(const std::vector<T>& choices) {
    return choices[static_cast<size_t>(Below(static_cast<int64_t>(choices.size())))];
  }
  std::string Word(const std::vector<const char*>& choices) { return Of(choices); }

 private:
  uint64_t state_;
};

// A config.json of any family; the vocabulary has room for the tokenizer of letters.
inline nlohmann::json RandomConfig(Dice* dice) {
  const int64_t heads = dice->Of<int64_t>({1, 2, 4});
  const int64_t head_dim = dice->Of<int64_t>({2, 8, 14});
  const std::string family = dice->Word({"llama", "mistral", "qwen2", "qwen3"});
  nlohmann::json config = {{"model_type", family},
                           {"hidden_size", dice->Of<int64_t>({16, 24, 40})},
                           {"intermediate_size", dice->Of<int64_t>({20, 48, 72})},
                           {"num_hidden_layers", dice->Between(1, 5)},
                           {"num_attention_heads", heads},
                           {"num_key_value_heads", dice->OneIn(2) ? heads : 1},
                           {"head_dim", head_dim},
                           {"max_position_embeddings", 1024},
                           {"tie_word_embeddings", dice->OneIn(2)},
                           {"bos_token_id", 1},
                           {"eos_token_id", 2},
                           {"vocab_size", dice->Between(40, 90)}};
  if (family == "llama") config["attention_bias"] = dice->OneIn(3);
  if (family == "mistral") config["sliding_window"] = dice->Of<int64_t>({17, 600});
  return config;
}

// One of the rows that all have the same number of tokens: with `chat_format: plain` a token a letter.
inline std::string LetterRow(Dice* dice, int64_t letters) {
  const auto text = [dice](int64_t length) {
    std::string word;
    while (static_cast<int64_t>(word.size()) < length) word += static_cast<char>('a' + dice->Below(26));
    return word;
  };
  return nlohmann::json{{"prompt", text(letters / 2)}, {"completion", text(letters - letters / 2)}}.dump() + "\n";
}

// The sections adapter, quantization, trainable and optimizer.
inline void AddTraining(Dice* dice, bool quantised, nlohmann::json* recipe) {
  const std::string adapter = quantised ? dice->Word({"lora", "dora"}) : dice->Word({"none", "none", "lora", "dora"});
  (*recipe)["adapter"] = {{"type", adapter}};
  std::vector<const char*> optimisers = {"adamw", "adamw8bit", "lion", "adafactor"};
  if (adapter == "none") {
    optimisers.push_back("apollo");
    if (dice->OneIn(3)) (*recipe)["trainable"] = {{"embeddings", false}};
  } else {
    (*recipe)["adapter"]["rank"] = dice->Between(1, 6);
    if (dice->OneIn(3)) (*recipe)["adapter"]["dropout"] = 0.1;
    if (dice->OneIn(2)) (*recipe)["adapter"]["targets"] = {"q_proj", "down_proj"};
  }
  const bool four_bits = adapter != "none" && !quantised && dice->OneIn(2);
  if (four_bits) {
    (*recipe)["quantization"] = {{"format", dice->Word({"nf4", "fp4"})},
                                 {"block_size", dice->Of<int64_t>({32, 64, 256})},
                                 {"double_quant", dice->OneIn(2)}};
    if (dice->OneIn(3)) (*recipe)["quantization"]["skip"] = {"o_proj"};
  }
  (*recipe)["optimizer"] = {{"name", dice->Word(optimisers)}, {"learning_rate", 1e-3}};
  if ((*recipe)["optimizer"]["name"] == "apollo") (*recipe)["optimizer"]["projection_rank"] = dice->Between(2, 12);
}

// The section memory.
inline nlohmann::json RandomMemory(Dice* dice, int64_t layers, bool dora) {
  const std::vector<const char*> actions = {"keep", "recompute", "offload_host", "offload_disk"};
  nlohmann::json memory = {{"weights", dice->Word({"device", "device", "host", "disk"})}};
  memory["optimizer_state"] = dice->Word({"device", "device", "host", "disk"});
  if (!dora && dice->OneIn(3)) memory["mlp_tile"] = 256;
  if (!dora && dice->OneIn(3)) memory["sequence_tile"] = 256;
  if (dice->OneIn(4)) memory["idle_values"] = dice->Word({"host", "disk"});
  if (dice->OneIn(4)) memory["compress"] = dice->Word({"bf16", "int8"});
  if (memory["weights"] == "device" && dice->OneIn(3)) memory["embeddings"] = dice->Word({"host", "disk"});
  if (dice->OneIn(8)) {
    memory["activations"] = "auto";
    return memory;
  }
  memory["activations"] = dice->Word(actions);
  if (dice->OneIn(2)) memory["boundaries"] = dice->Word(actions);
  if (dice->OneIn(3)) memory["attention"] = dice->Word(actions);
  if (dice->OneIn(3)) memory["elementwise"] = dice->Word(actions);
  if (dice->OneIn(3)) memory["boundary_span"] = dice->Between(2, 4);
  if (dice->OneIn(3)) {
    const int64_t first = dice->Below(layers);
    memory["layers"] = {
        absl::StrCat(first, "-", dice->Between(first, layers - 1), " ", dice->Word(actions), "/", dice->Word(actions))};
  }
  return memory;
}

}  // namespace thimble
