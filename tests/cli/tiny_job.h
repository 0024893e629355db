// A folder with a base model, rows and a recipe, all so small that a run takes a moment; tests spoil one thing at a
// time.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "nlohmann/json.hpp"
#include "tests/cli/program.h"
#include "tests/data/byte_tokenizer.h"
#include "tests/data/test_folder.h"

namespace thimble {

// A safetensors file as its parts.
struct RawTensors {
  nlohmann::ordered_json header;
  std::string data;

  void Add(const std::string& name, const std::vector<int64_t>& shape, float middle, uint32_t seed) {
    int64_t elements = 1;
    for (const int64_t extent : shape) elements *= extent;
    const size_t begin = data.size();
    uint32_t state = seed * 2654435761u + 12345u;
    for (int64_t i = 0; i < elements; ++i) {
      state = state * 1664525u + 1013904223u;
      const float value = middle + 0.2f * (static_cast<float>(state >> 8) / static_cast<float>(1 << 24) - 0.5f);
      data.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    header[name] = {{"dtype", "F32"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string Bytes() const {
    const std::string text = header.dump();
    const uint64_t size = text.size();
    return std::string(reinterpret_cast<const char*>(&size), 8) + text + data;
  }
};

class TinyJob : public TestFolder {
 protected:
  void SetUp() override {
    TestFolder::SetUp();
    std::filesystem::create_directories(folder_ / "base");
    Write("base/config.json", config_.dump());
    Write("base/model.safetensors", tensors_.Bytes());
    Write("base/tokenizer.json", ByteTokenizerJson({"<s>", "</s>"}, "<s>"));
    Write("train.jsonl", Rows(40, 1));
    Write("held.jsonl", Rows(8, 1000));
    WriteRecipe(recipe_);
  }

  // JSON is YAML.
  void WriteRecipe(const nlohmann::json& recipe) const { Write("recipe.yaml", recipe.dump(1)); }

  static std::string Rows(int count, int first) {
    std::string rows;
    for (int i = first; i < first + count; ++i) {
      std::string answer;
      for (int k = 1; k <= 1 + i % 5; ++k) answer += std::to_string(i + k) + " ";
      rows += nlohmann::json{{"prompt", "count on from " + std::to_string(i)}, {"completion", answer}}.dump() + "\n";
    }
    return rows;
  }

  Program Start(const std::vector<std::string>& arguments, rlim_t file_limit = RLIM_INFINITY) const {
    return Program(arguments, Path("errors.txt"), file_limit);
  }
  ProgramResult Run(const std::vector<std::string>& arguments, rlim_t file_limit = RLIM_INFINITY) const {
    Program program(arguments, Path("errors.txt"), file_limit);
    return program.Wait();
  }
  ProgramResult Train(const std::vector<std::string>& settings = {}) const {
    std::vector<std::string> arguments = {"train", Path("recipe.yaml")};
    for (const std::string& setting : settings) arguments.insert(arguments.end(), {"--set", setting});
    return Run(arguments);
  }
  ProgramResult ResumeRun(const std::string& run, rlim_t file_limit = RLIM_INFINITY) const {
    return Run({"train", "--resume", Path(run)}, file_limit);
  }

  std::set<std::string> Files() const {
    std::set<std::string> files;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(folder_)) {
      if (entry.path().filename() != "errors.txt") files.insert(entry.path().string());
    }
    return files;
  }
  nlohmann::json ReadJson(const std::string& name) const {
    return nlohmann::json::parse(FileContent(Path(name)), nullptr, false);
  }

  static nlohmann::json TinyConfig() {
    return {{"architectures", {"LlamaForCausalLM"}},
            {"model_type", "llama"},
            {"hidden_act", "silu"},
            {"hidden_size", 32},
            {"intermediate_size", 64},
            {"num_hidden_layers", 2},
            {"num_attention_heads", 4},
            {"num_key_value_heads", 2},
            {"head_dim", 8},
            {"max_position_embeddings", 256},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", 10000.0},
            {"tie_word_embeddings", true},
            {"torch_dtype", "float32"},
            {"bos_token_id", 256},
            {"eos_token_id", 257},
            {"vocab_size", 258}};
  }
  static RawTensors TinyTensors() {
    RawTensors tensors;
    uint32_t seed = 0;
    const auto add = [&](const std::string& name, const std::vector<int64_t>& shape, float middle) {
      tensors.Add(name, shape, middle, ++seed);
    };
    add("model.embed_tokens.weight", {258, 32}, 0);
    for (const char* layer : {"model.layers.0.", "model.layers.1."}) {
      add(std::string(layer) + "input_layernorm.weight", {32}, 1);
      add(std::string(layer) + "post_attention_layernorm.weight", {32}, 1);
      add(std::string(layer) + "self_attn.q_proj.weight", {32, 32}, 0);
      add(std::string(layer) + "self_attn.k_proj.weight", {16, 32}, 0);
      add(std::string(layer) + "self_attn.v_proj.weight", {16, 32}, 0);
      add(std::string(layer) + "self_attn.o_proj.weight", {32, 32}, 0);
      add(std::string(layer) + "mlp.gate_proj.weight", {64, 32}, 0);
      add(std::string(layer) + "mlp.up_proj.weight", {64, 32}, 0);
      add(std::string(layer) + "mlp.down_proj.weight", {32, 64}, 0);
    }
    add("model.norm.weight", {32}, 1);
    return tensors;
  }
  static nlohmann::json TinyRecipe() {
    return {
        {"model", {{"path", "base"}}},
        {"compute", "f32"},
        {"quantization", {{"format", "nf4"}}},
        {"adapter", {{"type", "lora"}, {"rank", 4}, {"dropout", 0.1}}},
        {"data", {{"train", "train.jsonl"}, {"validation", "held.jsonl"}, {"chat_format", "plain"}, {"seq_len", 96}}},
        {"optimizer", {{"learning_rate", 0.01}}},
        {"training",
         {{"steps", 30}, {"accumulation", 2}, {"eval_every", 7}, {"save_every", 3}, {"threads", 1}, {"seed", 5}}},
        {"output", {{"folder", "run"}, {"export", {{"format", "merged"}, {"dtype", "f32"}}}}}};
  }

  nlohmann::json config_ = TinyConfig();
  RawTensors tensors_ = TinyTensors();
  nlohmann::json recipe_ = TinyRecipe();
};

}  // namespace thimble
