// Reads a tokenizer.json: the file as a whole, its BPE model and its added tokens.
#include <algorithm>
#include <memory>

#include "absl/strings/str_cat.h"
#include "data/tokenizer_json_parts.h"
#include "ops/check.h"

namespace thimble {
namespace {

using nlohmann::json;

std::string Describe(const json& value) {
  switch (value.type()) {
    case json::value_t::null:
      return "nothing";
    case json::value_t::object:
      return "an object";
    case json::value_t::array:
      return absl::StrCat("an array of ", value.size());
    default: {
      const std::string text = value.dump(-1, ' ', false, json::error_handler_t::replace);
      return text.size() <= 60 ? text : text.substr(0, 57) + "...";
    }
  }
}

const json& Null() {
  static const json null;
  return null;
}

// The two pieces of a merge, written "a b" or ["a", "b"].
absl::Status ReadMergePieces(const JsonNode& node, std::string& left, std::string& right) {
  const json& value = node.value();
  if (value.is_array()) {
    if (value.size() != 2 || !value[0].is_string() || !value[1].is_string()) return node.Expected("two pieces");
    left = value[0].get<std::string>();
    right = value[1].get<std::string>();
    return absl::OkStatus();
  }
  if (!value.is_string()) return node.Expected("a string of two pieces or an array of two");
  const std::string& text = value.get_ref<const std::string&>();
  const auto spaces = std::count(text.begin(), text.end(), ' ');
  if (spaces != 1) {
    return node.Error(absl::StrCat("expected two pieces with one space between them, found \"", text, "\" with ",
                                   spaces,
                                   " spaces (a no-break space U+00A0 that some program turned into a plain one?); take "
                                   "the file from its source again"));
  }
  const size_t space = text.find(' ');
  left = text.substr(0, space);
  right = text.substr(space + 1);
  return absl::OkStatus();
}

absl::Status ReadMerges(const JsonNode& list, const BpeOptions& options, const Vocabulary& vocabulary,
                        BpeModel& model) {
  const size_t prefix = options.continuing_subword_prefix.size();
  uint32_t rank = 0;
  std::string left, right;
  for (size_t i = 0; i < list.value().size(); ++i) {
    const json& value = list.value()[i];
    if (value.is_string() && value.get_ref<const std::string&>().rfind("#version", 0) == 0) continue;
    const auto node = [&list, i] { return list.At(i); };
    if (absl::Status status = ReadMergePieces({&value, ""}, left, right); !status.ok()) {
      return ReadMergePieces(node(), left, right);
    }
    if (right.size() < prefix) return node().Error("the second piece is shorter than continuing_subword_prefix");
    const std::string merged = left + right.substr(prefix);
    int32_t ids[3];
    const std::string* const texts[3] = {&left, &right, &merged};
    for (int k = 0; k < 3; ++k) {
      ids[k] = vocabulary.Find(*texts[k]);
      if (ids[k] != Vocabulary::kNone) continue;
      return node().Error(
          absl::StrCat(k == 2 ? "the merged piece \"" : "the piece \"", *texts[k], "\" is not in model.vocab"));
    }
    model.AddMerge(ids[0], ids[1], rank++, ids[2]);
  }
  return absl::OkStatus();
}

absl::Status ReadVocabulary(const JsonNode& node, Vocabulary& vocabulary) {
  for (const auto& [text, id] : node.value().items()) {
    const auto entry = [&] { return JsonNode(&id, absl::StrCat(node.place(), "[\"", text, "\"]")); };
    if (!id.is_number_integer() || id < 0 || id >= kMostTokens) {
      return entry().Expected(absl::StrCat("a token id below ", kMostTokens));
    }
    const int32_t number = id.get<int32_t>();
    if (vocabulary.Has(number)) {
      return entry().Error(
          absl::StrCat("the id ", number, " belongs to \"", std::string(vocabulary.Text(number)), "\" too"));
    }
    vocabulary.Add(text, number);
  }
  return absl::OkStatus();
}

absl::Status CheckModelType(const JsonNode& node) {
  if (!node.value().is_object()) return node.Expected("an object");
  // Old files have no type; BPE alone has merges.
  ASSIGN_OR_RETURN(const std::string type, node.String("type", node.Has("merges") ? "BPE" : ""));
  if (type == "BPE") return absl::OkStatus();
  if (!type.empty()) return node.Error(absl::StrCat("the model \"", type, "\" is not supported; Thimble has BPE"));
  const bool unigram = node.Has("vocab") && node.At("vocab").value().is_array();
  return node.Error(unigram ? "the model \"Unigram\" is not supported; Thimble has BPE" : "type is missing");
}

// The id the reference gives an added token: the model's for its text, else the next free one.
int32_t AddedId(const TokenizerParts& parts, const std::string& content, int32_t largest_added) {
  const auto known = parts.added_ids.find(content);
  if (known != parts.added_ids.end()) return known->second;
  const int32_t id = parts.vocabulary.Find(content);
  if (id != Vocabulary::kNone) return id;
  return std::max(parts.vocabulary.size(), largest_added + 1);
}

absl::Status ReadAddedToken(const JsonNode& node, const std::string& name, int32_t& largest, TokenizerParts& parts) {
  if (!node.value().is_object()) return node.Expected("an object");
  AddedToken token;
  ASSIGN_OR_RETURN(token.content, node.String("content"));
  ASSIGN_OR_RETURN(const int64_t written_id, node.Integer("id", 0, kMostTokens - 1));
  ASSIGN_OR_RETURN(token.special, node.Bool("special", false));
  ASSIGN_OR_RETURN(token.single_word, node.Bool("single_word", false));
  ASSIGN_OR_RETURN(token.lstrip, node.Bool("lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, node.Bool("rstrip", false));
  ASSIGN_OR_RETURN(token.normalized, node.Bool("normalized", !token.special));
  if (token.content.empty()) return node.Error("content is empty");
  token.id = AddedId(parts, token.content, largest);
  if (token.id >= kMostTokens) return node.Error(absl::StrCat("there are more than ", kMostTokens, " tokens"));
  if (token.id != written_id) {
    parts.warnings.push_back(absl::StrCat(name, ": ", node.place(), ": \"", token.content, "\" has id ", token.id,
                                          " (by its text in the vocabulary or its place in the list), not ", written_id,
                                          " as written"));
  }
  largest = std::max(largest, token.id);
  if (token.special) parts.special.insert(token.id);
  parts.added_ids[token.content] = token.id;
  parts.added_by_id[token.id] = parts.added.size();
  parts.added.push_back(std::move(token));
  return absl::OkStatus();
}

absl::Status ReadAddedTokens(const JsonNode& root, const std::string& name, TokenizerParts& parts) {
  if (!root.Has("added_tokens")) return absl::OkStatus();
  ASSIGN_OR_RETURN(const JsonNode list, root.Array("added_tokens"));
  int32_t largest = -1;
  for (size_t i = 0; i < list.value().size(); ++i) RETURN_IF_ERROR(ReadAddedToken(list.At(i), name, largest, parts));
  RewriteSpace space;
  for (const AddedToken& token : parts.added) {
    if (!token.normalized) {
      parts.raw_matcher.Add(token.content, token);
      continue;
    }
    const AlignedView pattern = Normalize(parts.normalizer, {token.content}, space, false);
    if (!pattern.text.empty()) parts.normalized_matcher.Add(pattern.text, token);
  }
  parts.raw_matcher.Prepare();
  parts.normalized_matcher.Prepare();
  return absl::OkStatus();
}

absl::Status CheckTemplate(const TokenizerParts& parts) {
  for (const int32_t id : parts.post_template) {
    if (id == TokenizerParts::kSequence || parts.vocabulary.Has(id) || parts.added_by_id.contains(id)) continue;
    return absl::InvalidArgumentError(absl::StrCat("post_processor: no token has the id ", id));
  }
  return absl::OkStatus();
}

absl::Status ReadParts(const JsonNode& root, const std::string& name, TokenizerParts& parts) {
  if (!root.value().is_object()) return root.Expected("an object");
  ASSIGN_OR_RETURN(const std::string version, root.String("version", "1.0"));
  if (version != "1.0") return root.At("version").Expected("\"1.0\"");
  if (!root.Has("model")) return root.Error("there is no model");
  ASSIGN_OR_RETURN(const BpeOptions options, ReadBpeModel(root.At("model"), parts.vocabulary, parts.model));
  if (root.Has("normalizer")) {
    ASSIGN_OR_RETURN(parts.normalizer, ReadNormalizer(root.At("normalizer")));
  }
  if (root.Has("pre_tokenizer")) {
    ASSIGN_OR_RETURN(std::vector<PreTokenizerStep> steps, ReadPreTokenizer(root.At("pre_tokenizer")));
    parts.pre_tokenizer = PreTokenizer(std::move(steps));
  }
  const bool bytes = parts.model.Prepare(parts.vocabulary, options, parts.pre_tokenizer.ends_in_byte_level());
  parts.pre_tokenizer.set_map_bytes(!bytes);
  if (!bytes && !options.unk_token.empty() && parts.vocabulary.Find(options.unk_token) == Vocabulary::kNone) {
    return root.At("model").Error(absl::StrCat("unk_token \"", options.unk_token, "\" is not in model.vocab"));
  }
  RETURN_IF_ERROR(ReadAddedTokens(root, name, parts));
  parts.decoder = {{DecoderStep::Kind::kJoinWithSpaces}};
  if (root.Has("decoder")) {
    ASSIGN_OR_RETURN(parts.decoder, ReadDecoder(root.At("decoder")));
  }
  parts.post_template = {TokenizerParts::kSequence};
  if (root.Has("post_processor")) {
    ASSIGN_OR_RETURN(parts.post_template, ReadPostProcessor(root.At("post_processor")));
  }
  for (const char* key : {"truncation", "padding"}) {
    if (root.Has(key)) parts.warnings.push_back(absl::StrCat(name, ": ", key, " is left to the recipe"));
  }
  return CheckTemplate(parts);
}

}  // namespace

bool JsonNode::Has(const char* key) const {
  if (!value_->is_object()) return false;
  const auto found = value_->find(key);
  return found != value_->end() && !found->is_null();
}

JsonNode JsonNode::At(const char* key) const {
  const std::string place = place_.empty() ? key : absl::StrCat(place_, ".", key);
  const auto found = value_->is_object() ? value_->find(key) : value_->end();
  return {found == value_->end() ? &Null() : &*found, place};
}

JsonNode JsonNode::At(size_t index) const { return {&(*value_)[index], absl::StrCat(place_, "[", index, "]")}; }

absl::Status JsonNode::Expected(const std::string& expected) const {
  return Error(absl::StrCat("expected ", expected, ", found ", Describe(*value_)));
}

absl::Status JsonNode::Error(const std::string& message) const {
  return absl::InvalidArgumentError(place_.empty() ? message : absl::StrCat(place_, ": ", message));
}

absl::StatusOr<bool> JsonNode::Bool(const char* key) const {
  const JsonNode node = At(key);
  if (!node.value().is_boolean()) return node.Expected("true or false");
  return node.value().get<bool>();
}

absl::StatusOr<bool> JsonNode::Bool(const char* key, bool otherwise) const {
  return Has(key) ? Bool(key) : absl::StatusOr<bool>(otherwise);
}

absl::StatusOr<std::string> JsonNode::String(const char* key) const {
  const JsonNode node = At(key);
  if (!node.value().is_string()) return node.Expected("a string");
  return node.value().get<std::string>();
}

absl::StatusOr<std::string> JsonNode::String(const char* key, const char* otherwise) const {
  return Has(key) ? String(key) : absl::StatusOr<std::string>(otherwise);
}

absl::StatusOr<int64_t> JsonNode::Integer(const char* key, int64_t low, int64_t high) const {
  const JsonNode node = At(key);
  if (!node.value().is_number_integer() || node.value() < low || node.value() > high) {
    return node.Expected(absl::StrCat("an integer from ", low, " to ", high));
  }
  return node.value().get<int64_t>();
}

absl::StatusOr<JsonNode> JsonNode::Array(const char* key) const {
  const JsonNode node = At(key);
  if (!node.value().is_array()) return node.Expected("an array");
  return node;
}

absl::StatusOr<JsonNode> JsonNode::Object(const char* key) const {
  const JsonNode node = At(key);
  if (!node.value().is_object()) return node.Expected("an object");
  return node;
}

absl::StatusOr<BpeOptions> ReadBpeModel(const JsonNode& node, Vocabulary& vocabulary, BpeModel& model) {
  RETURN_IF_ERROR(CheckModelType(node));
  if (node.Has("dropout")) {
    const json& dropout = node.At("dropout").value();
    if (!dropout.is_number() || dropout != 0) {
      return node.At("dropout").Expected("null or 0 (BPE dropout is not supported: ids would be random)");
    }
  }
  BpeOptions options;
  ASSIGN_OR_RETURN(options.unk_token, node.String("unk_token", ""));
  ASSIGN_OR_RETURN(options.continuing_subword_prefix, node.String("continuing_subword_prefix", ""));
  ASSIGN_OR_RETURN(options.end_of_word_suffix, node.String("end_of_word_suffix", ""));
  ASSIGN_OR_RETURN(options.fuse_unk, node.Bool("fuse_unk", false));
  ASSIGN_OR_RETURN(options.byte_fallback, node.Bool("byte_fallback", false));
  ASSIGN_OR_RETURN(options.ignore_merges, node.Bool("ignore_merges", false));
  ASSIGN_OR_RETURN(const JsonNode vocab, node.Object("vocab"));
  RETURN_IF_ERROR(ReadVocabulary(vocab, vocabulary));
  ASSIGN_OR_RETURN(const JsonNode merges, node.Array("merges"));
  RETURN_IF_ERROR(ReadMerges(merges, options, vocabulary, model));
  return options;
}

absl::StatusOr<std::unique_ptr<TokenizerParts>> ReadTokenizerJson(std::string_view text, const std::string& name) {
  json document;
  try {
    document = json::parse(text.begin(), text.end());
  } catch (const json::exception& error) {
    std::string reason = error.what();
    const size_t bracket = reason.find("] ");  // nlohmann's own error number
    if (bracket != std::string::npos) reason = reason.substr(bracket + 2);
    return absl::InvalidArgumentError(absl::StrCat(name, ": not valid JSON: ", reason));
  }
  auto parts = std::make_unique<TokenizerParts>();
  const absl::Status status = ReadParts({&document, ""}, name, *parts);
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(name, ": ", std::string(status.message())));
  return parts;
}

}  // namespace thimble
