// config.json to DecoderConfig: both forms of the file, defaults of each family, and refusals that name the key.
#include "trainer/decoder_config.h"

#include <cstdlib>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace thimble {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json Base(const std::string& type) {
  json config = {{"model_type", type},          {"hidden_size", 64},        {"num_hidden_layers", 3},
                 {"num_attention_heads", 4},    {"intermediate_size", 96},  {"vocab_size", 100},
                 {"num_key_value_heads", 2},    {"rms_norm_eps", 1e-5},     {"max_position_embeddings", 4096},
                 {"tie_word_embeddings", true}, {"initializer_range", 0.03}};
  return config;
}

DecoderConfig Parsed(const json& config) {
  const auto parsed = ParseDecoderConfig(config, "config.json");
  EXPECT_TRUE(parsed.ok()) << parsed.status();
  return parsed.value_or(DecoderConfig());
}

std::string Refusal(const json& config) {
  const auto parsed = ParseDecoderConfig(config, "here/config.json");
  EXPECT_EQ(parsed.status().code(), absl::StatusCode::kInvalidArgument) << parsed.status();
  EXPECT_THAT(std::string(parsed.status().message()), HasSubstr("here/config.json"));
  return std::string(parsed.status().message());
}

// All fields, so that two structs can be compared.
std::string Text(const DecoderConfig& c) {
  const RopeScaling& r = c.rope_scaling;
  std::string text = absl::StrCat(c.model_type, " ", c.hidden_dim, " ", c.num_layers, " ", c.num_heads, " ",
                                  c.num_kv_heads, " ", c.head_dim, " ", c.intermediate_dim, " ", c.vocab_size, " ",
                                  c.max_position, " ", c.rms_norm_eps, " ", c.rope_theta);
  absl::StrAppend(&text, " | rope ", static_cast<int>(r.type), " ", r.factor, " ", r.low_freq_factor, " ",
                  r.high_freq_factor, " ", r.original_max_position, " ", r.beta_fast, " ", r.beta_slow, " ",
                  r.attention_factor, " ", r.mscale, " ", r.mscale_all_dim, " ", r.truncate);
  absl::StrAppend(&text, " | ", c.tie_embeddings, c.qkv_bias, c.o_bias, c.mlp_bias, c.qk_norm, " ", c.init_std, " ",
                  c.bos_token_id, " windows");
  for (const int64_t window : c.windows) absl::StrAppend(&text, " ", window);
  for (const int32_t id : c.eos_token_ids) absl::StrAppend(&text, " eos ", id);
  return text;
}

TEST(DecoderConfigTest, OlderAndNewerFormsAgree) {
  const json scalings[] = {
      {{"rope_type", "default"}},
      {{"rope_type", "linear"}, {"factor", 4.0}},
      {{"rope_type", "llama3"},
       {"factor", 8.0},
       {"low_freq_factor", 1.0},
       {"high_freq_factor", 4.0},
       {"original_max_position_embeddings", 1024}},
      {{"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 1024}, {"beta_fast", 16.0}},
  };
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const json& scaling : scalings) {
      json older = Base(type);
      older["rope_theta"] = 500000.0;
      older["rope_scaling"] = scaling;
      older["torch_dtype"] = "bfloat16";
      json newer = Base(type);
      newer["rope_parameters"] = scaling;
      newer["rope_parameters"]["rope_theta"] = 500000.0;
      newer["dtype"] = "bfloat16";
      EXPECT_EQ(Text(Parsed(older)), Text(Parsed(newer)));
      EXPECT_EQ(Parsed(newer).rope_theta, 500000.0);
      // "type" is the oldest name of "rope_type".
      json oldest = older;
      oldest["rope_scaling"]["type"] = scaling["rope_type"];
      oldest["rope_scaling"].erase("rope_type");
      EXPECT_EQ(Text(Parsed(oldest)), Text(Parsed(newer)));
    }
  }
  json null_scaling = Base("llama");
  null_scaling["rope_scaling"] = nullptr;
  EXPECT_EQ(Text(Parsed(null_scaling)), Text(Parsed(Base("llama"))));
}

TEST(DecoderConfigTest, ReadsEveryField) {
  json config = Base("llama");
  config["rope_scaling"] = {{"rope_type", "llama3"},
                            {"factor", 32.0},
                            {"low_freq_factor", 2.0},
                            {"high_freq_factor", 5.0},
                            {"original_max_position_embeddings", 512}};
  config["attention_bias"] = true;
  config["mlp_bias"] = true;
  config["eos_token_id"] = {7, 8};
  config["bos_token_id"] = 6;
  const DecoderConfig c = Parsed(config);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.num_kv_heads, 2);
  EXPECT_TRUE(c.tie_embeddings && c.qkv_bias && c.o_bias && c.mlp_bias && !c.qk_norm);
  EXPECT_EQ(c.rope_scaling.type, RopeScaling::Type::kLlama3);
  EXPECT_EQ(c.rope_scaling.factor, 32.0f);
  EXPECT_EQ(c.rope_scaling.original_max_position, 512);
  EXPECT_EQ(c.rope_scaling.high_freq_factor, 5.0f);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(7, 8));
  EXPECT_EQ(c.bos_token_id, 6);
}

TEST(DecoderConfigTest, DefaultsOfAbsentAndNullKeys) {
  json config = Base("llama");
  config.erase("num_key_value_heads");
  EXPECT_EQ(Parsed(config).num_kv_heads, 4);
  config["num_key_value_heads"] = nullptr;
  config["head_dim"] = nullptr;
  EXPECT_EQ(Parsed(config).num_kv_heads, 4);
  EXPECT_EQ(Parsed(config).head_dim, 16);

  json mistral = Base("mistral");
  mistral["num_key_value_heads"] = nullptr;
  EXPECT_EQ(Parsed(mistral).num_kv_heads, 4) << "null is as many as heads, not the family's 8";
  mistral.erase("num_key_value_heads");
  mistral["num_attention_heads"] = 16;
  EXPECT_EQ(Parsed(mistral).num_kv_heads, 8);
  EXPECT_THAT(Parsed(mistral).windows, ElementsAre(4096, 4096, 4096));
  mistral["sliding_window"] = nullptr;
  EXPECT_THAT(Parsed(mistral).windows, ElementsAre(0, 0, 0));

  EXPECT_EQ(Parsed(Base("qwen3")).head_dim, 128);
  EXPECT_TRUE(Parsed(Base("qwen3")).qk_norm);
  EXPECT_TRUE(Parsed(Base("qwen2")).qkv_bias && !Parsed(Base("qwen2")).o_bias);
  json qwen = Base("qwen2");
  EXPECT_THAT(Parsed(qwen).windows, ElementsAre(0, 0, 0));
  qwen["use_sliding_window"] = true;
  qwen["sliding_window"] = 32;
  qwen["max_window_layers"] = 1;
  EXPECT_THAT(Parsed(qwen).windows, ElementsAre(0, 32, 32));
  qwen["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention"};
  EXPECT_THAT(Parsed(qwen).windows, ElementsAre(32, 0, 32));
}

TEST(DecoderConfigTest, RefusalsNameKeyAndValue) {
  const auto with = [](const std::string& key, const json& value) {
    json config = Base("llama");
    config[key] = value;
    return Refusal(config);
  };
  EXPECT_THAT(with("model_type", "gpt2"), HasSubstr("\"model_type\": unsupported architecture"));
  EXPECT_THAT(with("model_type", "gpt2"), HasSubstr("found \"gpt2\""));
  EXPECT_THAT(with("architectures", {"LlamaForSequenceClassification"}), HasSubstr("LlamaForSequenceClassification"));
  EXPECT_THAT(with("hidden_act", "gelu"), HasSubstr("\"hidden_act\": unsupported; Thimble knows silu, found \"gelu\""));
  EXPECT_THAT(with("rope_scaling", {{"rope_type", "longrope"}, {"factor", 2.0}}), HasSubstr("found \"longrope\""));
  EXPECT_THAT(with("rope_scaling", {{"rope_type", "linear"}}), HasSubstr("\"factor\": missing"));
  EXPECT_THAT(with("rope_scaling", {{"rope_type", "linear"}, {"factor", 0.5}}), HasSubstr("\"factor\""));
  EXPECT_THAT(with("hidden_size", 0), HasSubstr("\"hidden_size\": expected an integer of at least 1, found 0"));
  EXPECT_THAT(with("hidden_size", -4), HasSubstr("found -4"));
  EXPECT_THAT(with("hidden_size", "64"), HasSubstr("\"hidden_size\": expected an integer, found \"64\""));
  EXPECT_THAT(with("vocab_size", 18446744073709551615u), HasSubstr("\"vocab_size\""));
  EXPECT_THAT(with("hidden_size", 66), HasSubstr("\"hidden_size\": expected a multiple of num_attention_heads"));
  EXPECT_THAT(with("num_key_value_heads", 3), HasSubstr("\"num_key_value_heads\": expected a divisor"));
  EXPECT_THAT(with("head_dim", 7), HasSubstr("\"head_dim\": expected an even number"));
  EXPECT_THAT(with("rms_norm_eps", 0.0), HasSubstr("\"rms_norm_eps\""));
  EXPECT_THAT(with("rope_theta", 0.0), HasSubstr("\"rope_theta\""));
  EXPECT_THAT(with("partial_rotary_factor", 0.5), HasSubstr("\"partial_rotary_factor\": unsupported"));
  EXPECT_THAT(with("attention_dropout", 0.1), HasSubstr("\"attention_dropout\": unsupported"));
  EXPECT_THAT(with("tie_word_embeddings", "yes"), HasSubstr("\"tie_word_embeddings\": expected true or false"));
  EXPECT_THAT(with("eos_token_id", "two"), HasSubstr("\"eos_token_id\""));
  json config = Base("mistral");
  config["layer_types"] = {"full_attention"};
  EXPECT_THAT(Refusal(config), HasSubstr("\"layer_types\": expected a list of 3 names"));
  config["layer_types"] = {"full_attention", "linear_attention", "full_attention"};
  EXPECT_THAT(Refusal(config), HasSubstr("layer 1 is of an unsupported type"));
  config = Base("llama");
  config.erase("vocab_size");
  EXPECT_THAT(Refusal(config), HasSubstr("\"vocab_size\": missing"));
  EXPECT_THAT(Refusal(json::array()), HasSubstr("expected a JSON object"));
}

TEST(DecoderConfigTest, JsonRoundTrip) {
  const std::vector<json> scalings = {
      nullptr,
      {{"rope_type", "linear"}, {"factor", 2.5}},
      {{"rope_type", "llama3"},
       {"factor", 8.0},
       {"low_freq_factor", 1.5},
       {"high_freq_factor", 4.5},
       {"original_max_position_embeddings", 1024}},
      {{"rope_type", "yarn"}, {"original_max_position_embeddings", 512}, {"beta_slow", 2.0}, {"truncate", false}},
      {{"rope_type", "yarn"}, {"factor", 4.0}, {"attention_factor", 1.2}, {"mscale", 0.7}, {"mscale_all_dim", 1.3}},
  };
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    for (const json& scaling : scalings) {
      json config = Base(type);
      config["rope_scaling"] = scaling;
      config["rope_theta"] = 1234567.0;
      config["eos_token_id"] = {7, 8};
      for (const char* windows : {"default", "none", "some"}) {
        if (windows != std::string("default")) config["sliding_window"] = nullptr;
        if (windows == std::string("some")) {
          config["sliding_window"] = 24;
          config["use_sliding_window"] = true;
          config["layer_types"] = {"full_attention", "sliding_attention", "sliding_attention"};
        }
        const DecoderConfig parsed = Parsed(config);
        const json written = DecoderConfigJson(parsed, "float32");
        EXPECT_EQ(Text(parsed), Text(Parsed(json::parse(written.dump())))) << written.dump(2);
        EXPECT_EQ(written["torch_dtype"], "float32");
      }
    }
  }
}

// Published configurations of all sorts: those of the four families are read, the others refused by name.
TEST(DecoderConfigTest, PublishedConfigurations) {
  const char* assets = std::getenv("THIMBLE_ASSETS");
  const std::filesystem::path folder =
      std::filesystem::path(assets != nullptr ? assets : THIMBLE_SOURCE_DIR "/../shared/assets") / "configs";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder << "; set THIMBLE_ASSETS";
  int read = 0;
  for (const auto& file : std::filesystem::directory_iterator(folder)) {
    const json config = json::parse(ReadFile(file.path().string()).value());
    if (!config.contains("model_type")) continue;
    const auto parsed = ParseDecoderConfig(config, file.path().filename().string());
    const std::string type = config["model_type"];
    if (type == "llama" || type == "mistral" || type == "qwen2" || type == "qwen3") {
      EXPECT_TRUE(parsed.ok()) << parsed.status();
      EXPECT_EQ(Text(*parsed), Text(Parsed(DecoderConfigJson(*parsed, "bfloat16")))) << file.path();
      ++read;
    } else {
      EXPECT_FALSE(parsed.ok()) << file.path();
    }
  }
  EXPECT_GE(read, 10);
}

}  // namespace
}  // namespace thimble
