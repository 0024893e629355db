// YAML nodes into protobuf fields by reflection, with the place of every key for errors.
#include "recipes/recipe_reader.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/yaml.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "data/file.h"
#include "ops/check.h"
#include "recipes/nearest_name.h"
#include "recipes/refused_pairs.h"
#include "recipes/schema.h"

namespace thimble {
namespace {

// Where documents begin.
class DocumentStarts : public YAML::EventHandler {
 public:
  std::vector<YAML::Mark> marks;
  void OnDocumentStart(const YAML::Mark& mark) override { marks.push_back(mark); }
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark&, YAML::anchor_t) override {}
  void OnAlias(const YAML::Mark&, YAML::anchor_t) override {}
  void OnScalar(const YAML::Mark&, const std::string&, YAML::anchor_t, const std::string&) override {}
  void OnSequenceStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnSequenceEnd() override {}
  void OnMapStart(const YAML::Mark&, const std::string&, YAML::anchor_t, YAML::EmitterStyle::value) override {}
  void OnMapEnd() override {}
};

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;
using recipe::Adapter;
using recipe::Option;
using recipe::Trainable;

constexpr size_t kLargestRecipeBytes = 1 << 20;

// What stands at a node, for "found ...".
std::string Found(const YAML::Node& node) {
  constexpr size_t kLongestQuote = 60;
  if (node.IsNull()) return "nothing";
  if (node.IsSequence()) return "a list";
  if (node.IsMap()) return "keys";
  const std::string& text = node.Scalar();
  return absl::StrCat("'", text.substr(0, kLongestQuote), text.size() > kLongestQuote ? "..." : "", "'");
}

// The last part of a key.
std::string Leaf(const std::string& key) { return key.substr(key.rfind('.') + 1); }

class RecipeParser {
 public:
  explicit RecipeParser(std::string file) : file_(std::move(file)) {}

  absl::Status ReadFileText(std::string_view text, Recipe* recipe);
  absl::Status ApplyOverride(const std::string& assignment, Recipe* recipe);
  absl::Status CheckRequired(const Message& message, const std::string& prefix, RecipeUse use) const;
  std::string PlaceOf(const std::string& key) const;

 private:
  std::string Where(const YAML::Node& node) const;
  absl::Status WrongValue(const YAML::Node& node, const std::string& key, const FieldDescriptor& field) const;
  absl::Status UnknownKey(const std::string& where, const std::string& key, const Descriptor& section) const;
  absl::Status ReadSection(const YAML::Node& node, const std::string& prefix, Message* message);
  absl::Status ReadField(const YAML::Node& node, const std::string& key, const FieldDescriptor& field,
                         Message* message);
  absl::Status ReadScalar(const YAML::Node& node, const std::string& key, const FieldDescriptor& field,
                          Message* message);
  absl::Status SetKey(const std::vector<std::string>& path, size_t depth, const std::string& prefix,
                      const YAML::Node& value, Message* message);
  std::string AbsolutePath(const std::string& path) const;

  std::string file_;
  std::string override_;                       // the assignment being applied; empty while the file is read
  std::map<std::string, std::string> places_;  // key -> where it was given last
};

std::string RecipeParser::Where(const YAML::Node& node) const {
  if (!override_.empty()) return absl::StrCat("--set ", override_);
  return absl::StrCat(file_, ":", node.Mark().line + 1);
}

std::string RecipeParser::PlaceOf(const std::string& key) const {
  const auto found = places_.find(key);
  return found == places_.end() ? "" : found->second;
}

absl::Status RecipeParser::WrongValue(const YAML::Node& node, const std::string& key,
                                      const FieldDescriptor& field) const {
  std::string hint;
  if (field.enum_type() != nullptr && node.IsScalar()) {
    hint = DidYouMean(node.Scalar(), EnumTexts(*field.enum_type()));
  }
  return absl::InvalidArgumentError(
      absl::StrCat(Where(node), ": ", key, ": found ", Found(node), ", expected ", AllowedText(field), hint));
}

// The nearest key of the same section, else the same or the nearest name in another section.
absl::Status RecipeParser::UnknownKey(const std::string& where, const std::string& key,
                                      const Descriptor& section) const {
  const std::string prefix = key.substr(0, key.size() - Leaf(key).size());
  std::string nearest = NearestName(Leaf(key), OptionNames(section));
  if (!nearest.empty()) nearest = prefix + nearest;
  const std::vector<std::string> all = AllKeys(*Recipe::descriptor());
  for (size_t i = 0; i < all.size() && nearest.empty(); ++i) {
    if (Leaf(all[i]) == Leaf(key)) nearest = all[i];
  }
  if (nearest.empty()) {
    std::vector<std::string> leaves;
    for (const std::string& other : all) leaves.push_back(Leaf(other));
    const std::string leaf = NearestName(Leaf(key), leaves);
    for (size_t i = 0; i < all.size() && nearest.empty() && !leaf.empty(); ++i) {
      if (leaves[i] == leaf) nearest = all[i];
    }
  }
  return absl::InvalidArgumentError(absl::StrCat(where, ": ", key, ": unknown key",
                                                 nearest.empty() ? "." : "; did you mean '" + nearest + "'?",
                                                 " Allowed here: ", absl::StrJoin(OptionNames(section), ", ")));
}

absl::Status RecipeParser::ReadSection(const YAML::Node& node, const std::string& prefix, Message* message) {
  std::set<std::string> seen;
  for (const auto& pair : node) {
    if (!pair.first.IsScalar()) {
      return absl::InvalidArgumentError(absl::StrCat(Where(node), ": found ", Found(pair.first), " as a key"));
    }
    const std::string key = prefix + pair.first.Scalar();
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(pair.first.Scalar());
    if (field == nullptr) return UnknownKey(Where(pair.first), key, *message->GetDescriptor());
    if (!seen.insert(key).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(Where(pair.first), ": ", key, ": given twice, first at ", PlaceOf(key), "; keep one"));
    }
    places_[key] = Where(pair.first);
    RETURN_IF_ERROR(ReadField(pair.second, key, *field, message));
  }
  return absl::OkStatus();
}

absl::Status RecipeParser::ReadField(const YAML::Node& node, const std::string& key, const FieldDescriptor& field,
                                     Message* message) {
  const Reflection& reflection = *message->GetReflection();
  if (node.IsNull()) {
    reflection.ClearField(message, &field);
    return absl::OkStatus();
  }
  if (field.message_type() != nullptr) {
    if (!node.IsMap()) return WrongValue(node, key, field);
    return ReadSection(node, key + ".", reflection.MutableMessage(message, &field));
  }
  if (!field.is_repeated()) return ReadScalar(node, key, field, message);
  reflection.ClearField(message, &field);
  if (!node.IsSequence()) return ReadScalar(node, key, field, message);
  for (const YAML::Node& element : node) RETURN_IF_ERROR(ReadScalar(element, key, field, message));
  return absl::OkStatus();
}

absl::Status RecipeParser::ReadScalar(const YAML::Node& node, const std::string& key, const FieldDescriptor& field,
                                      Message* message) {
  if (!node.IsScalar()) return WrongValue(node, key, field);
  const Reflection& reflection = *message->GetReflection();
  const Option& option = OptionOf(field);
  const std::string& text = node.Scalar();
  const bool quoted = node.Tag() == "!";  // "16" is a text, 16 a number
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t value = 0;
      if (option.may_be_auto() && !quoted && text == "auto") {
        reflection.SetInt64(message, &field, kAutoSize);
        break;
      }
      const bool read = option.bytes() ? ParseBytes(text, &value) : !quoted && absl::SimpleAtoi(text, &value);
      if (!read || !InRange(option, static_cast<double>(value))) return WrongValue(node, key, field);
      reflection.SetInt64(message, &field, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double value = 0;
      const bool read = !quoted && absl::SimpleAtod(text, &value) && std::isfinite(value);
      if (!read || !InRange(option, value)) return WrongValue(node, key, field);
      reflection.SetDouble(message, &field, value);
      break;
    }
    case FieldDescriptor::CPPTYPE_BOOL:
      if (quoted || (text != "true" && text != "false")) return WrongValue(node, key, field);
      reflection.SetBool(message, &field, text == "true");
      break;
    case FieldDescriptor::CPPTYPE_ENUM: {
      const google::protobuf::EnumValueDescriptor* value = FindEnumValue(*field.enum_type(), text);
      if (value == nullptr) return WrongValue(node, key, field);
      reflection.SetEnum(message, &field, value);
      break;
    }
    default: {
      if (option.path() && text.empty()) return WrongValue(node, key, field);
      const std::string value = option.path() ? AbsolutePath(text) : text;
      if (field.is_repeated()) {
        reflection.AddString(message, &field, value);
      } else {
        reflection.SetString(message, &field, value);
      }
    }
  }
  return absl::OkStatus();
}

std::string RecipeParser::AbsolutePath(const std::string& path) const {
  std::filesystem::path result(path);
  const char* home = std::getenv("HOME");
  if (path.rfind("~/", 0) == 0 && home != nullptr) {
    result = std::filesystem::path(home) / path.substr(2);
  } else if (override_.empty() && result.is_relative()) {
    result = std::filesystem::path(file_).parent_path() / result;
  }
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(result, error);
  std::string normal = (error ? result : absolute).lexically_normal().string();
  if (normal.size() > 1 && normal.back() == '/') normal.pop_back();
  return normal;
}

absl::Status RecipeParser::ReadFileText(std::string_view text, Recipe* recipe) {
  if (text.size() > kLargestRecipeBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": found ", text.size(), " bytes, expected a recipe of at most 1 MiB"));
  }
  // Two at most: where a comma or a bracket stands alone, yaml-cpp finds empty documents without end.
  std::istringstream stream{std::string(text)};
  YAML::Parser parser(stream);
  DocumentStarts starts;
  while (starts.marks.size() < 2 && parser.HandleNextDocument(starts)) {
  }
  if (starts.marks.size() > 1) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ":", starts.marks[1].line + 1, ": found a second document, expected one"));
  }
  const YAML::Node document = YAML::Load(std::string(text));
  if (document.IsNull()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": found nothing, expected a recipe; see: thimble help recipe"));
  }
  if (!document.IsMap()) {
    return absl::InvalidArgumentError(absl::StrCat(Where(document), ": found ", Found(document),
                                                   ", expected the keys of a recipe; see: thimble help recipe"));
  }
  return ReadSection(document, "", recipe);
}

absl::Status RecipeParser::ApplyOverride(const std::string& assignment, Recipe* recipe) {
  override_ = assignment;
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("--set ", assignment, ": expected KEY=VALUE, for example --set training.steps=100"));
  }
  const std::vector<std::string> path = absl::StrSplit(assignment.substr(0, equals), '.');
  return SetKey(path, 0, "", YAML::Load(assignment.substr(equals + 1)), recipe);
}

absl::Status RecipeParser::SetKey(const std::vector<std::string>& path, size_t depth, const std::string& prefix,
                                  const YAML::Node& value, Message* message) {
  const std::string key = prefix + path[depth];
  const std::string where = Where(value);
  const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(path[depth]);
  if (field == nullptr) return UnknownKey(where, key, *message->GetDescriptor());
  places_[key] = where;
  if (depth + 1 == path.size()) return ReadField(value, key, *field, message);
  if (field->message_type() == nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", key, " has no keys of its own"));
  }
  Message* section = message->GetReflection()->MutableMessage(message, field);
  return SetKey(path, depth + 1, key + ".", value, section);
}

absl::Status RecipeParser::CheckRequired(const Message& message, const std::string& prefix, RecipeUse use) const {
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    const std::string key = prefix + field.name();
    const bool given =
        field.is_repeated() ? reflection.FieldSize(message, &field) > 0 : reflection.HasField(message, &field);
    const bool excused = use == RecipeUse::kPlan && key == "data.train";
    if (OptionOf(field).required() && !given && !excused) {
      const std::string place = prefix.empty() ? "" : PlaceOf(prefix.substr(0, prefix.size() - 1));
      return absl::InvalidArgumentError(absl::StrCat(place.empty() ? file_ : place, ": ", key, ": missing; expected ",
                                                     AllowedText(field), ". ", OptionOf(field).help()));
    }
    if (field.message_type() == nullptr || (!given && OptionOf(field).optional_section())) continue;
    RETURN_IF_ERROR(CheckRequired(reflection.GetMessage(message, &field), key + ".", use));
  }
  return absl::OkStatus();
}

// Sets every option that has a default and every section that always exists.
void SetDefaults(Message* message) {
  const Reflection& reflection = *message->GetReflection();
  for (int i = 0; i < message->GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message->GetDescriptor()->field(i);
    if (field.message_type() != nullptr) {
      if (OptionOf(field).optional_section() && !reflection.HasField(*message, &field)) continue;
      SetDefaults(reflection.MutableMessage(message, &field));
      continue;
    }
    if (!field.has_default_value() || reflection.HasField(*message, &field)) continue;
    switch (field.cpp_type()) {
      case FieldDescriptor::CPPTYPE_INT64:
        reflection.SetInt64(message, &field, field.default_value_int64());
        break;
      case FieldDescriptor::CPPTYPE_DOUBLE:
        reflection.SetDouble(message, &field, field.default_value_double());
        break;
      case FieldDescriptor::CPPTYPE_BOOL:
        reflection.SetBool(message, &field, field.default_value_bool());
        break;
      case FieldDescriptor::CPPTYPE_ENUM:
        reflection.SetEnum(message, &field, field.default_value_enum());
        break;
      default:
        reflection.SetString(message, &field, field.default_value_string());
    }
  }
}

absl::StatusOr<Recipe> Parse(std::string_view text, const std::string& path, const std::vector<std::string>& overrides,
                             RecipeUse use) {
  Recipe recipe;
  RecipeParser parser(path);
  RETURN_IF_ERROR(parser.ReadFileText(text, &recipe));
  for (const std::string& assignment : overrides) {
    // yaml-cpp reports by exceptions; none may pass this file.
    try {
      RETURN_IF_ERROR(parser.ApplyOverride(assignment, &recipe));
    } catch (const YAML::Exception& error) {
      return absl::InvalidArgumentError(absl::StrCat("--set ", assignment, ": the value is not YAML: ", error.msg));
    }
  }
  RETURN_IF_ERROR(parser.CheckRequired(recipe, "", use));
  RETURN_IF_ERROR(
      CheckRefusedPairs(recipe, [&parser](const std::string& key) -> std::string { return parser.PlaceOf(key); }));
  SetDefaults(&recipe);
  // What is refused beside another architecture, also by its default: a resolved recipe must be one that is read.
  if (recipe.model().has_config() &&
      recipe.model().config().architecture() != recipe::DecoderShape::ARCHITECTURE_BITNET) {
    recipe.mutable_model()->mutable_config()->clear_ternary();
  }
  return recipe;
}

}  // namespace

absl::StatusOr<Recipe> ParseRecipe(std::string_view text, const std::string& path,
                                   const std::vector<std::string>& overrides, RecipeUse use) {
  try {
    return Parse(text, path, overrides, use);
  } catch (const YAML::Exception& error) {
    return absl::InvalidArgumentError(absl::StrCat(path, ":", error.mark.line + 1, ": not valid YAML: ", error.msg,
                                                   " (column ", error.mark.column + 1, ")"));
  }
}

absl::StatusOr<Recipe> ReadRecipe(const std::string& path, const std::vector<std::string>& overrides, RecipeUse use) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  return ParseRecipe(text, path, overrides, use);
}

bool TrainsAllWeights(const Recipe& recipe) {
  if (recipe.trainable().has_weights()) return recipe.trainable().weights() == Trainable::WEIGHTS_ALL;
  return recipe.adapter().type() == Adapter::TYPE_NONE;
}

bool TrainsEmbeddings(const Recipe& recipe) {
  return recipe.trainable().has_embeddings() ? recipe.trainable().embeddings() : TrainsAllWeights(recipe);
}

}  // namespace thimble
