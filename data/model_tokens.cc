#include "data/model_tokens.h"

#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "data/gguf_tokenizer.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

using Json = nlohmann::json;

// An empty object when the file does not exist.
absl::StatusOr<Json> ReadJsonObject(const std::string& path) {
  absl::StatusOr<std::string> content = ReadFile(path);
  if (absl::IsNotFound(content.status())) return Json::object();
  if (!content.ok()) return content.status();
  Json json = Json::parse(*content, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": expected one JSON object, found ",
                                                   json.is_discarded() ? "malformed JSON" : json.type_name()));
  }
  return json;
}

// A token stated as a string or as an object with its content; empty when absent or null.
absl::StatusOr<std::string> TokenField(const Json& json, const char* key, const std::string& path) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return std::string();
  if (found->is_string()) return found->get<std::string>();
  if (found->is_object() && found->contains("content") && (*found)["content"].is_string()) {
    return (*found)["content"].get<std::string>();
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path, ": '", key, "': expected a string, an object with 'content', or null"));
}

// A template as a string, or the one named "default" of a list.
absl::StatusOr<std::string> TemplateField(const Json& json, const std::string& path) {
  const auto found = json.find("chat_template");
  if (found == json.end() || found->is_null()) return std::string();
  if (found->is_string()) return found->get<std::string>();
  if (found->is_array()) {
    for (const Json& item : *found) {
      if (item.is_object() && item.value("name", Json()) == "default" && item.contains("template") &&
          item["template"].is_string()) {
        return item["template"].get<std::string>();
      }
    }
    return std::string();
  }
  return absl::InvalidArgumentError(absl::StrCat(path, ": 'chat_template': expected a string or a list of templates"));
}

// config.json and generation_config.json state eos_token_id as a number or a list of numbers.
int32_t FirstId(const Json& json, const char* key) {
  const auto found = json.find(key);
  if (found == json.end()) return -1;
  const Json& id = found->is_array() && !found->empty() ? (*found)[0] : *found;
  if (!id.is_number_integer()) return -1;
  const auto value = id.get<int64_t>();
  return value >= 0 && value <= INT32_MAX ? static_cast<int32_t>(value) : -1;
}

// The token's id; a token that the vocabulary lacks counts as none.
int32_t ResolveId(const Tokenizer& tokenizer, std::string* token) {
  const std::optional<int32_t> id = token->empty() ? std::nullopt : tokenizer.TokenId(*token);
  if (!id.has_value()) token->clear();
  return id.value_or(-1);
}

absl::StatusOr<Json> ReadGgufConfig(const std::string& path) {
  ASSIGN_OR_RETURN(const GgufHeader header, ReadGgufHeader(path));
  return GgufTokenizerConfig(header);
}

}  // namespace

absl::StatusOr<ModelTokens> LoadModelTokens(const std::string& folder, const Tokenizer& tokenizer) {
  const bool gguf = IsGgufFile(folder);
  const std::string config_path = gguf ? folder : folder + "/tokenizer_config.json";
  ASSIGN_OR_RETURN(const Json config, gguf ? ReadGgufConfig(folder) : ReadJsonObject(config_path));
  ModelTokens tokens;
  for (const std::string& path : {config_path, folder + "/special_tokens_map.json"}) {
    ASSIGN_OR_RETURN(const Json json, path == config_path ? absl::StatusOr<Json>(config) : ReadJsonObject(path));
    ASSIGN_OR_RETURN(const std::string bos, TokenField(json, "bos_token", path));
    ASSIGN_OR_RETURN(const std::string eos, TokenField(json, "eos_token", path));
    if (tokens.bos_token.empty()) tokens.bos_token = bos;
    if (tokens.eos_token.empty()) tokens.eos_token = eos;
  }
  tokens.bos_id = ResolveId(tokenizer, &tokens.bos_token);
  tokens.eos_id = ResolveId(tokenizer, &tokens.eos_token);
  for (const char* name : {"/generation_config.json", "/config.json"}) {
    ASSIGN_OR_RETURN(const Json json, ReadJsonObject(folder + name));
    if (tokens.eos_id < 0) tokens.eos_id = FirstId(json, "eos_token_id");
    tokens.eos_token = tokens.eos_id < 0 ? "" : std::string(tokenizer.TokenText(tokens.eos_id));
    if (tokens.eos_token.empty()) tokens.eos_id = -1;
  }

  // What the post-processor puts first stands for BOS where the configuration names none.
  const std::vector<int32_t> added = tokenizer.Encode("", /*add_special_tokens=*/true);
  if (tokens.bos_id < 0 && !added.empty() && added[0] != tokens.eos_id) {
    tokens.bos_id = added[0];
    tokens.bos_token = std::string(tokenizer.TokenText(added[0]));
  }
  tokens.add_bos = tokens.bos_id >= 0 && !added.empty() && added[0] == tokens.bos_id;
  if (const auto add = config.find("add_bos_token"); add != config.end() && add->is_boolean()) {
    tokens.add_bos = tokens.bos_id >= 0 && add->get<bool>();
  }

  ASSIGN_OR_RETURN(tokens.chat_template, TemplateField(config, config_path));
  absl::StatusOr<std::string> jinja = ReadFile(folder + "/chat_template.jinja");
  if (!jinja.ok() && !absl::IsNotFound(jinja.status())) return jinja.status();
  if (jinja.ok()) tokens.chat_template = *std::move(jinja);
  return tokens;
}

}  // namespace thimble
