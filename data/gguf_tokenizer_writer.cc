#include "data/gguf_tokenizer_writer.h"

#include <algorithm>
#include <filesystem>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "data/gguf_tokenizer.h"
#include "data/gguf_writer.h"
#include "data/json_file.h"
#include "data/model_tokens.h"
#include "data/tokenizer.h"
#include "ops/check.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6;
// Of tokens that no merge gives: SentencePiece joins them last, if ever.
constexpr double kLeastScore = -1e6;

std::string Key(const std::string& name) { return "tokenizer.ggml." + name; }

struct TokenTable {
  std::vector<std::string> texts;
  std::vector<int64_t> types;
};

std::string Text(const json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

// Tokens of the model and added ones by id. The tokenizer was loaded, so that the lists are what they should be.
TokenTable ReadTable(const json& document, const Tokenizer& tokenizer, int64_t vocab_size, bool sentence_piece) {
  TokenTable table;
  table.texts.resize(static_cast<size_t>(std::max(vocab_size, tokenizer.vocab_size())));
  table.types.assign(table.texts.size(), kUnused);
  const json& model = document["model"];
  for (const auto& [text, id] : model["vocab"].items()) {
    const size_t at = id.get<size_t>();
    const bool byte = sentence_piece && text.size() == 6 && absl::StartsWith(text, "<0x") && text.back() == '>';
    table.texts[at] = text;
    table.types[at] = byte ? kByte : kNormal;
  }
  if (document.contains("added_tokens")) {
    for (const json& token : document["added_tokens"]) {
      const std::string text = Text(token, "content");
      const std::optional<int32_t> id = tokenizer.TokenId(text);
      if (!id) continue;
      const bool special = token.contains("special") && token["special"] == true;
      table.texts[*id] = text;
      table.types[*id] = special ? kControl : kUserDefined;
    }
  }
  if (const std::optional<int32_t> id = tokenizer.TokenId(Text(model, "unk_token")); sentence_piece && id) {
    table.types[*id] = kUnknown;
  }
  for (size_t i = 0; i < table.texts.size(); ++i) {
    if (table.types[i] == kUnused) table.texts[i] = absl::StrCat("[PAD", i, "]");
  }
  return table;
}

// The two pieces of merge i.
std::pair<std::string, std::string> MergePieces(const json& merge) {
  if (merge.is_array()) return {merge[0].get<std::string>(), merge[1].get<std::string>()};
  const std::string text = merge.get<std::string>();
  const size_t space = text.find(' ');
  return {text.substr(0, space), text.substr(space + 1)};
}

// Minus the index of the first merge that gives a token.
std::vector<double> Scores(const json& merges, const TokenTable& table) {
  absl::flat_hash_map<std::string, double> first;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto [left, right] = MergePieces(merges[i]);
    first.emplace(left + right, -static_cast<double>(i));
  }
  std::vector<double> scores(table.texts.size(), kLeastScore);
  for (size_t i = 0; i < scores.size(); ++i) {
    if (table.types[i] != kNormal) {
      scores[i] = 0;
      continue;
    }
    if (const auto found = first.find(table.texts[i]); found != first.end()) scores[i] = found->second;
  }
  return scores;
}

// The regular expressions of a pre-tokenizer that ends in bytes, in order; `digits` for single ones.
std::vector<std::string> Splits(const json& step) {
  std::vector<std::string> splits;
  const std::string type = Text(step, "type");
  if (type == "Sequence") {
    for (const json& inner : step["pretokenizers"]) {
      for (std::string& split : Splits(inner)) splits.push_back(std::move(split));
    }
  } else if (type == "Split") {
    const json& pattern = step["pattern"];
    const bool isolated = Text(step, "behavior") == "Isolated" && step.value("invert", false) == false;
    splits.push_back(isolated ? Text(pattern, "Regex") : "?");
  } else if (type == "Digits") {
    splits.push_back(step.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)");
  } else if (type == "ByteLevel") {
    if (step.value("add_prefix_space", true)) splits.push_back("? (add_prefix_space)");
    if (step.value("use_regex", true)) splits.push_back("ByteLevel");
  } else {
    splits.push_back("? (" + type + ")");
  }
  return splits;
}

// llama.cpp's name for a pre-tokenizer; empty: none.
std::string NameOfPreTokenizer(const json& step, bool whole_words) {
  std::vector<std::string> splits = Splits(step);
  // The pattern that a byte-level step has of its own.
  const std::vector<std::string> gpt2 = Splits(GgufPreTokenizer("gpt-2").steps);
  std::replace(splits.begin(), splits.end(), std::string("ByteLevel"), gpt2[0]);
  for (const char* name : {"gpt-2", "qwen2", "llama-bpe", "dbrx", "smollm", "falcon", "deepseek-coder", "default"}) {
    const PreTokenizerOfName known = GgufPreTokenizer(name);
    if (known.whole_words == whole_words && Splits(known.steps) == splits) return name;
  }
  return "";
}

bool HasType(const json& node, const std::string& type) {
  if (node.is_object() && Text(node, "type") == type) return true;
  if (!node.is_structured()) return false;
  return std::any_of(node.begin(), node.end(), [&](const json& inner) { return HasType(inner, type); });
}

bool PutsSpaceFirst(const json& document) {
  if (document.contains("normalizer") && HasType(document["normalizer"], "Prepend")) return true;
  const json pre = document.value("pre_tokenizer", json());
  return HasType(pre, "Metaspace") && pre.dump().find("\"never\"") == std::string::npos &&
         pre.value("add_prefix_space", true);
}

absl::Status AddModel(const std::string& file, const json& document, const TokenTable& table, bool sentence_piece,
                      std::vector<GgufEntry>* entries) {
  const json& model = document["model"];
  entries->push_back(GgufString(Key("model"), sentence_piece ? "llama" : "gpt2"));
  if (sentence_piece) {
    entries->push_back(GgufString(Key("pre"), "default"));
    entries->push_back(GgufFloats(Key("scores"), Scores(model["merges"], table)));
    entries->push_back(GgufBool(Key("add_space_prefix"), PutsSpaceFirst(document)));
    return absl::OkStatus();
  }
  const bool whole_words = model.value("ignore_merges", false);
  const std::string pre = NameOfPreTokenizer(document.value("pre_tokenizer", json()), whole_words);
  if (pre.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        file,
        ": pre_tokenizer: llama.cpp has none that cuts text like this one; expected that of GPT-2, Llama 3, "
        "Qwen 2, SmolLM, Falcon or DeepSeek Coder"));
  }
  entries->push_back(GgufString(Key("pre"), pre));
  std::vector<std::string> merges;
  for (const json& merge : model["merges"]) {
    if (merge.is_string() && absl::StartsWith(merge.get<std::string>(), "#version")) continue;
    const auto [left, right] = MergePieces(merge);
    merges.push_back(absl::StrCat(left, " ", right));
  }
  entries->push_back(GgufStrings(Key("merges"), std::move(merges)));
  return absl::OkStatus();
}

absl::Status AddSpecialIds(const std::string& folder, const Tokenizer& tokenizer, std::vector<GgufEntry>* entries) {
  ASSIGN_OR_RETURN(const ModelTokens tokens, LoadModelTokens(folder, tokenizer));
  const auto add = [entries](const std::string& name, int64_t id) {
    if (id >= 0) entries->push_back(GgufInteger(Key(name + "_token_id"), GgufType::kU32, id));
  };
  add("bos", tokens.bos_id);
  add("eos", tokens.eos_id);
  const absl::StatusOr<json> config = ReadJsonObject(folder + "/tokenizer_config.json");
  for (const auto& [key, name] : {std::pair("unk_token", "unknown"), std::pair("pad_token", "padding")}) {
    if (!config.ok()) break;
    const json token = config->value(key, json());
    const std::string text = token.is_object() ? Text(token, "content") : Text(*config, key);
    add(name, tokenizer.TokenId(text).value_or(-1));
  }
  const std::vector<int32_t> empty = tokenizer.Encode("", /*add_special_tokens=*/true);
  entries->push_back(GgufBool(Key("add_bos_token"), tokens.add_bos));
  entries->push_back(GgufBool(Key("add_eos_token"), !empty.empty() && empty.back() == tokens.eos_id));
  if (!tokens.chat_template.empty()) {
    entries->push_back(GgufString("tokenizer.chat_template", tokens.chat_template));
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<GgufEntry>> CopiedEntries(const std::string& path) {
  ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path));
  std::vector<GgufEntry> entries;
  for (const GgufEntry& entry : header.entries()) {
    if (absl::StartsWith(entry.key, "tokenizer.")) entries.push_back(entry);
  }
  return entries;
}

}  // namespace

absl::StatusOr<std::vector<GgufEntry>> GgufTokenizerEntries(const std::string& folder, int64_t vocab_size) {
  if (IsGgufFile(folder)) return CopiedEntries(folder);
  const std::string file = folder + "/tokenizer.json";
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(file));
  ASSIGN_OR_RETURN(const json document, ReadJsonObject(file));
  const json& model = document["model"];
  const bool sentence_piece = model.value("byte_fallback", false);
  if (!sentence_piece && !HasType(document.value("pre_tokenizer", json()), "ByteLevel")) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": neither byte-level BPE nor SentencePiece BPE with bytes: llama.cpp cannot read it"));
  }
  std::vector<GgufEntry> entries;
  TokenTable table = ReadTable(document, *tokenizer, vocab_size, sentence_piece);
  RETURN_IF_ERROR(AddModel(file, document, table, sentence_piece, &entries));
  RETURN_IF_ERROR(AddSpecialIds(folder, *tokenizer, &entries));
  entries.push_back(GgufStrings(Key("tokens"), std::move(table.texts)));
  entries.push_back(GgufIntegers(Key("token_type"), GgufType::kI32, std::move(table.types)));
  return entries;
}

}  // namespace thimble
