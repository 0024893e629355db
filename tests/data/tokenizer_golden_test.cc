// Ids and decodings against Hugging Face tokenizers: made pipelines with every part, and published test vectors.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/tokenizer.h"

namespace thimble {
namespace {

using nlohmann::json;
using Ids = std::vector<int32_t>;

std::string Assets() {
  const char* folder = std::getenv("THIMBLE_ASSETS");
  return folder != nullptr ? folder : THIMBLE_SOURCE_DIR "/../shared/assets";
}

std::string Content(const std::string& path) {
  auto content = ReadFile(path);
  EXPECT_TRUE(content.ok()) << content.status();
  return content.ok() ? *content : "";
}

std::string Streamed(const Tokenizer& tokenizer, const Ids& ids) {
  StreamDecoder stream(tokenizer, false);
  std::string text;
  for (const int32_t id : ids) text += stream.Push(id);
  return text + stream.Finish();
}

// Offsets belong to the same ids, lie in the text and never go back.
void CheckOffsets(const Tokenizer& tokenizer, const std::string& text, const Ids& ids) {
  const auto encoding = tokenizer.EncodeWithOffsets(text, true);
  ASSERT_EQ(encoding.ids, ids);
  int64_t begin = 0, end = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    ASSERT_GE(encoding.begin[i], begin);
    ASSERT_GE(encoding.end[i], std::max(end, encoding.begin[i]));
    begin = encoding.begin[i];
    end = encoding.end[i];
  }
  ASSERT_LE(end, static_cast<int64_t>(text.size()));
}

TEST(TokenizerGoldenTest, MadePipelines) {
  const json golden = json::parse(Content(THIMBLE_SOURCE_DIR "/tests/golden/tokenizer/pipelines.json"));
  ASSERT_GT(golden["cases"].size(), 20u);
  for (const json& pipeline : golden["cases"]) {
    json file = pipeline["parts"];
    file["model"] = golden["models"][pipeline["model"].get<std::string>()];
    file["model"].update(pipeline["options"]);
    SCOPED_TRACE(pipeline["parts"].dump());
    const auto tokenizer = Tokenizer::FromJson(file.dump(), "pipeline");
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    for (size_t i = 0; i < golden["texts"].size(); ++i) {
      const std::string text = golden["texts"][i];
      const Ids want = pipeline["ids"][i];
      EXPECT_EQ((*tokenizer)->Encode(text, true), want) << text;
      CheckOffsets(**tokenizer, text, want);
      Ids plain;
      for (const int32_t id : want) {
        bool added = false;
        for (const json& token : pipeline["parts"]["added_tokens"]) added |= token["id"] == id;
        if (!added) plain.push_back(id);
      }
      EXPECT_EQ((*tokenizer)->Decode(plain, false), pipeline["decoded"][i].get<std::string>()) << text;
      EXPECT_EQ(Streamed(**tokenizer, plain), pipeline["decoded"][i].get<std::string>());
    }
  }
}

struct Vector {
  const char* tokenizer;
  const char* name;
};
constexpr Vector kLlamaCpp[] = {
    {"gpt2", "gpt-2"}, {"llama-3", "llama-bpe"}, {"llama-2", "llama-spm"}, {"phi-3-mini", "phi-3"}, {"qwen2", "qwen2"}};
constexpr Vector kMultilingual[] = {{"gpt2", "gpt2"}, {"qwen2.5", "qwen2.5"}, {"llama-2", "tinyllama"}};

bool NoAssets() { return !std::filesystem::exists(Assets() + "/tokenizers/vectors"); }

TEST(TokenizerGoldenTest, LlamaCppVectors) {
  if (NoAssets()) GTEST_SKIP() << "SKIPPED: no test assets in " << Assets() << "; set THIMBLE_ASSETS";
  const std::string separator = "\n__ggml_vocab_test__\n";
  for (const Vector& vector : kLlamaCpp) {
    SCOPED_TRACE(vector.tokenizer);
    const auto tokenizer = Tokenizer::Load(Assets() + "/tokenizers/" + vector.tokenizer);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const std::string stem = Assets() + "/tokenizers/vectors/" + vector.name + ".gguf";
    const std::string inputs = Content(stem + ".inp");
    std::istringstream outputs(Content(stem + ".out"));
    size_t at = 0, count = 0;
    for (std::string line; at < inputs.size() && std::getline(outputs, line); ++count) {
      const size_t end = std::min(inputs.find(separator, at), inputs.size());
      const std::string text = inputs.substr(at, end - at);
      at = end + separator.size();
      std::istringstream words(line);
      Ids want;
      for (int32_t id; words >> id;) want.push_back(id);
      EXPECT_EQ((*tokenizer)->Encode(text, false), want) << text;
    }
    EXPECT_GT(count, 40u);
  }
}

TEST(TokenizerGoldenTest, MultilingualVectors) {
  if (NoAssets()) GTEST_SKIP() << "SKIPPED: no test assets in " << Assets() << "; set THIMBLE_ASSETS";
  const std::string folder = Assets() + "/tokenizers/vectors/multilingual_";
  const json inputs = json::parse(Content(folder + "inputs.json"))["inputs"];
  for (const Vector& vector : kMultilingual) {
    SCOPED_TRACE(vector.tokenizer);
    const auto tokenizer = Tokenizer::Load(Assets() + "/tokenizers/" + vector.tokenizer);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    const json entries = json::parse(Content(folder + vector.name + ".json"))["entries"];
    size_t count = 0;
    for (const json& input : inputs) {
      const auto entry = entries.find(input["id"].get<std::string>());
      if (entry == entries.end()) continue;
      ++count;
      EXPECT_EQ((*tokenizer)->Encode(input["text"].get<std::string>(), true), (*entry)["input_ids"].get<Ids>());
    }
    EXPECT_GT(count, 5u);
  }
}

}  // namespace
}  // namespace thimble
