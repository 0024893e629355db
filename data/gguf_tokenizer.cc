#include "data/gguf_tokenizer.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "data/byte_source.h"
#include "ops/check.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr int64_t kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4;
constexpr char kSpaceMark[] = "\xe2\x96\x81";  // U+2581

std::string Key(const std::string& name) { return "tokenizer.ggml." + name; }

struct Tokens {
  std::string model;  // "gpt2" or "llama"
  const std::vector<std::string>* texts = nullptr;
  std::vector<int64_t> types;  // one a token; all normal where the file names none
  absl::flat_hash_map<std::string_view, int64_t> ids;
};

absl::StatusOr<Tokens> ReadTokens(const GgufHeader& header) {
  Tokens tokens;
  ASSIGN_OR_RETURN(tokens.model, header.String(Key("model"), ""));
  if (tokens.model != "gpt2" && tokens.model != "llama") {
    return header.Error(Key("model"), "gpt2 (byte-level BPE) or llama (SentencePiece BPE)");
  }
  ASSIGN_OR_RETURN(const GgufValue* texts, header.Array(Key("tokens"), GgufType::kString, -1));
  if (texts == nullptr || texts->size() == 0) return header.Error(Key("tokens"), "an array of strings");
  tokens.texts = &texts->strings;
  ASSIGN_OR_RETURN(const GgufValue* types, header.Array(Key("token_type"), GgufType::kI32, texts->size()));
  tokens.types = types != nullptr ? types->integers : std::vector<int64_t>(texts->strings.size(), kNormal);
  tokens.ids.reserve(texts->strings.size());
  for (int64_t i = 0; i < texts->size(); ++i) {
    const std::string& text = texts->strings[i];
    const auto [place, inserted] = tokens.ids.emplace(text, i);
    if (FindInvalidUtf8(text) >= 0 || !inserted) {
      return absl::InvalidArgumentError(
          absl::StrCat(header.path(), ": metadata \"", Key("tokens"), "\"[", i,
                       "]: ", inserted ? "is not UTF-8" : absl::StrCat("is the same as [", place->second, "]")));
    }
  }
  return tokens;
}

// -1 where the file names none.
absl::StatusOr<int64_t> TokenId(const GgufHeader& header, const Tokens& tokens, const std::string& name) {
  return header.TokenId(Key(name + "_token_id"), static_cast<int64_t>(tokens.texts->size()));
}

absl::StatusOr<bool> AddsBos(const GgufHeader& header, const Tokens& tokens) {
  bool otherwise = true;
  if (tokens.model == "gpt2") {
    ASSIGN_OR_RETURN(const std::string pre, header.String(Key("pre"), "default"));
    otherwise = GgufPreTokenizer(pre).adds_bos;
  }
  return header.Bool(Key("add_bos_token"), otherwise);
}

// BOS before and EOS behind a text, where the file asks for them.
absl::StatusOr<json> PostProcessor(const GgufHeader& header, const Tokens& tokens) {
  ASSIGN_OR_RETURN(const bool add_bos, AddsBos(header, tokens));
  ASSIGN_OR_RETURN(const bool add_eos, header.Bool(Key("add_eos_token"), false));
  ASSIGN_OR_RETURN(const int64_t bos, TokenId(header, tokens, "bos"));
  ASSIGN_OR_RETURN(const int64_t eos, TokenId(header, tokens, "eos"));
  json single = json::array(), specials = json::object();
  const auto add = [&](int64_t id) {
    const std::string& text = (*tokens.texts)[id];
    single.push_back({{"SpecialToken", {{"id", text}, {"type_id", 0}}}});
    specials[text] = {{"id", text}, {"ids", {id}}, {"tokens", {text}}};
  };
  if (add_bos && bos >= 0) add(bos);
  single.push_back({{"Sequence", {{"id", "A"}, {"type_id", 0}}}});
  if (add_eos && eos >= 0) add(eos);
  if (single.size() == 1) return json();
  json pair = single;
  pair.push_back({{"Sequence", {{"id", "B"}, {"type_id", 1}}}});
  return json{{"type", "TemplateProcessing"}, {"single", single}, {"pair", pair}, {"special_tokens", specials}};
}

json AddedTokens(const Tokens& tokens) {
  json added = json::array();
  for (size_t i = 0; i < tokens.types.size(); ++i) {
    const int64_t type = tokens.types[i];
    if (type != kUnknown && type != kControl && type != kUserDefined) continue;
    if ((*tokens.texts)[i].empty()) continue;
    added.push_back({{"id", i},
                     {"content", (*tokens.texts)[i]},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", type != kUserDefined}});
  }
  return added;
}

json VocabularyJson(const Tokens& tokens) {
  json vocab = json::object();
  for (size_t i = 0; i < tokens.texts->size(); ++i) vocab[(*tokens.texts)[i]] = i;
  return vocab;
}

absl::StatusOr<json> ByteLevelModel(const GgufHeader& header, const Tokens& tokens, json* document) {
  ASSIGN_OR_RETURN(const std::string pre, header.String(Key("pre"), "default"));
  const PreTokenizerOfName named = GgufPreTokenizer(pre);
  if (named.steps.is_null()) {
    return header.Error(Key("pre"),
                        "a pre-tokenizer that Thimble knows (gpt-2, llama-bpe, qwen2, smollm, starcoder, falcon, "
                        "deepseek-coder, dbrx, default)");
  }
  ASSIGN_OR_RETURN(const GgufValue* merges, header.Array(Key("merges"), GgufType::kString, -1));
  if (merges == nullptr) return header.Error(Key("merges"), "an array of strings");
  (*document)["pre_tokenizer"] = named.steps;
  (*document)["decoder"] = {{"type", "ByteLevel"}};
  json list = json::array();
  for (int64_t i = 0; i < merges->size(); ++i) {
    // Pieces may hold spaces only behind their first byte.
    const std::string& merge = merges->strings[i];
    const size_t space = merge.find(' ', 1);
    if (space == std::string::npos || FindInvalidUtf8(merge) >= 0) {
      return absl::InvalidArgumentError(absl::StrCat(header.path(), ": metadata \"", Key("merges"), "\"[", i,
                                                     "]: expected two pieces with a space between them"));
    }
    list.push_back({merge.substr(0, space), merge.substr(space + 1)});
  }
  return json{{"type", "BPE"},
              {"vocab", VocabularyJson(tokens)},
              {"merges", std::move(list)},
              {"ignore_merges", named.whole_words},
              {"byte_fallback", false},
              {"fuse_unk", false}};
}

// SentencePiece joins the neighbours whose union has the best score: merges by falling score of what they give.
std::vector<std::pair<std::string, std::string>> MergesByScore(const Tokens& tokens,
                                                               const std::vector<double>& scores) {
  struct Merge {
    double score;
    size_t left, right;  // bytes
    const std::string* text;
  };
  std::vector<Merge> merges;
  for (size_t i = 0; i < tokens.texts->size(); ++i) {
    if (tokens.types[i] != kNormal) continue;
    const std::string& text = (*tokens.texts)[i];
    for (size_t cut = 1; cut < text.size(); ++cut) {
      if ((static_cast<uint8_t>(text[cut]) & 0xc0) == 0x80) continue;  // within a character
      const std::string_view view(text);
      if (!tokens.ids.contains(view.substr(0, cut)) || !tokens.ids.contains(view.substr(cut))) continue;
      merges.push_back({scores[i], cut, text.size() - cut, &text});
    }
  }
  std::stable_sort(merges.begin(), merges.end(), [](const Merge& a, const Merge& b) {
    if (a.score != b.score) return a.score > b.score;
    return a.left != b.left ? a.left > b.left : a.right > b.right;
  });
  std::vector<std::pair<std::string, std::string>> pairs;
  pairs.reserve(merges.size());
  for (const Merge& merge : merges)
    pairs.emplace_back(merge.text->substr(0, merge.left), merge.text->substr(merge.left));
  return pairs;
}

absl::StatusOr<json> SentencePieceModel(const GgufHeader& header, const Tokens& tokens, json* document) {
  ASSIGN_OR_RETURN(const GgufValue* scores,
                   header.Array(Key("scores"), GgufType::kF32, static_cast<int64_t>(tokens.texts->size())));
  if (scores == nullptr) return header.Error(Key("scores"), "an array of f32, one a token");
  ASSIGN_OR_RETURN(const bool prefix, header.Bool(Key("add_space_prefix"), true));
  ASSIGN_OR_RETURN(const int64_t unknown, TokenId(header, tokens, "unknown"));
  const json mark_spaces = {{"type", "Replace"}, {"pattern", {{"String", " "}}}, {"content", kSpaceMark}};
  json normalizers = json::array();
  if (prefix) normalizers.push_back({{"type", "Prepend"}, {"prepend", kSpaceMark}});
  normalizers.push_back(mark_spaces);
  (*document)["normalizer"] = {{"type", "Sequence"}, {"normalizers", normalizers}};
  (*document)["pre_tokenizer"] = nullptr;
  json decoders = json::array();
  decoders.push_back({{"type", "Replace"}, {"pattern", {{"String", kSpaceMark}}}, {"content", " "}});
  decoders.push_back({{"type", "ByteFallback"}});
  decoders.push_back({{"type", "Fuse"}});
  if (prefix) decoders.push_back({{"type", "Strip"}, {"content", " "}, {"start", 1}, {"stop", 0}});
  (*document)["decoder"] = {{"type", "Sequence"}, {"decoders", decoders}};
  json merges = json::array();
  for (auto& [left, right] : MergesByScore(tokens, scores->floats)) merges.push_back({left, right});
  json model = {
      {"type", "BPE"},    {"vocab", VocabularyJson(tokens)}, {"merges", std::move(merges)}, {"byte_fallback", true},
      {"fuse_unk", true}, {"ignore_merges", false}};
  // 0 where the file names none, as llama.cpp has it.
  model["unk_token"] = (*tokens.texts)[std::max<int64_t>(unknown, 0)];
  return model;
}

}  // namespace

absl::StatusOr<json> GgufTokenizerJson(const GgufHeader& header) {
  ASSIGN_OR_RETURN(const Tokens tokens, ReadTokens(header));
  json document = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}, {"normalizer", nullptr}};
  document["added_tokens"] = AddedTokens(tokens);
  ASSIGN_OR_RETURN(document["model"], tokens.model == "gpt2" ? ByteLevelModel(header, tokens, &document)
                                                             : SentencePieceModel(header, tokens, &document));
  ASSIGN_OR_RETURN(document["post_processor"], PostProcessor(header, tokens));
  return document;
}

absl::StatusOr<json> GgufTokenizerConfig(const GgufHeader& header) {
  ASSIGN_OR_RETURN(const Tokens tokens, ReadTokens(header));
  json config = {{"tokenizer_class", "PreTrainedTokenizerFast"}, {"clean_up_tokenization_spaces", false}};
  for (const char* name : {"bos", "eos", "unknown", "padding"}) {
    ASSIGN_OR_RETURN(const int64_t id, TokenId(header, tokens, name));
    if (id < 0) continue;
    const std::string key = name == std::string_view("unknown")   ? "unk_token"
                            : name == std::string_view("padding") ? "pad_token"
                                                                  : absl::StrCat(name, "_token");
    config[key] = (*tokens.texts)[id];
  }
  ASSIGN_OR_RETURN(const bool add_bos, AddsBos(header, tokens));
  config["add_bos_token"] = add_bos && config.contains("bos_token");
  ASSIGN_OR_RETURN(const std::string chat_template, header.String("tokenizer.chat_template", ""));
  if (!chat_template.empty()) config["chat_template"] = chat_template;
  return config;
}

}  // namespace thimble
