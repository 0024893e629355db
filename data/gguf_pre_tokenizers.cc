// llama.cpp's pre-tokenizers by name.
#include <algorithm>
#include <string_view>
#include <vector>

#include "data/gguf_tokenizer.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr char kGpt2[] = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr char kLlama3[] = R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?)"
                           R"([^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kQwen2[] =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr char kThreeDigits[] = "[0-9][0-9][0-9]";

json Split(const char* regex) {
  return {{"type", "Split"}, {"pattern", {{"Regex", regex}}}, {"behavior", "Isolated"}, {"invert", false}};
}

json ByteLevel() {
  return {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
}

// One split behind the other, each within the pieces of the one before; then bytes.
json Sequence(const std::vector<const char*>& regexes) {
  json steps = json::array();
  for (const char* regex : regexes) steps.push_back(Split(regex));
  steps.push_back(ByteLevel());
  return {{"type", "Sequence"}, {"pretokenizers", steps}};
}

bool IsOneOf(std::string_view name, std::initializer_list<std::string_view> names) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

PreTokenizerOfName GgufPreTokenizer(const std::string& name) {
  if (IsOneOf(name, {"llama3", "llama-v3", "llama-bpe", "lfm2", "falcon3", "pixtral"})) {
    return {Sequence({kLlama3}), true, true};
  }
  if (IsOneOf(name, {"dbrx", "smaug-bpe"})) return {Sequence({kLlama3})};
  if (IsOneOf(name, {"qwen2", "deepseek-r1-qwen", "stablelm2", "megrez"})) return {Sequence({kQwen2})};
  if (IsOneOf(name, {"gpt-2", "gpt2", "mpt", "olmo", "phi-2", "jina-es", "jina-de", "gigachat", "roberta-bpe"})) {
    return {Sequence({kGpt2})};
  }
  if (IsOneOf(name, {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"})) {
    return {Sequence({R"(\p{N})", kGpt2})};
  }
  if (name == "deepseek-coder") {
    return {Sequence({"[\r\n]", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[一-龥ࠀ-一가-퟿]+", R"(\p{N})"})};
  }
  if (name == "falcon") return {Sequence({R"([\p{P}\$\+<=>\^~\|`]+)", kGpt2, kThreeDigits})};
  if (name == "default") return {Sequence({R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", kThreeDigits})};
  return {};
}

}  // namespace thimble
