// Deterministic YAML from the schema by reflection.
#include "recipes/recipe_writer.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "recipes/schema.h"

namespace thimble {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

// A double-quoted YAML scalar, which can hold any text.
std::string Quoted(const std::string& text) {
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\') {
      quoted += '\\';
      quoted += c;
    } else if (c == '\n') {
      quoted += "\\n";
    } else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&quoted, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      quoted += c;
    }
  }
  return quoted + "\"";
}

std::string ScalarText(const Message& message, const FieldDescriptor& field) {
  const Reflection& reflection = *message.GetReflection();
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64: {
      const int64_t value = reflection.GetInt64(message, &field);
      if (OptionOf(field).may_be_auto() && value == kAutoSize) return "auto";
      return OptionOf(field).bytes() ? BytesText(value) : absl::StrCat(value);
    }
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberText(reflection.GetDouble(message, &field));
    case FieldDescriptor::CPPTYPE_BOOL:
      return reflection.GetBool(message, &field) ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(*reflection.GetEnum(message, &field));
    default:
      return Quoted(reflection.GetString(message, &field));
  }
}

void AppendList(const Message& message, const FieldDescriptor& field, const std::string& indent, std::string* out) {
  const Reflection& reflection = *message.GetReflection();
  const int size = reflection.FieldSize(message, &field);
  if (size == 0) {
    absl::StrAppend(out, " []\n");
    return;
  }
  absl::StrAppend(out, "\n");
  for (int i = 0; i < size; ++i) {
    absl::StrAppend(out, indent, "  - ", Quoted(reflection.GetRepeatedString(message, &field, i)), "\n");
  }
}

void AppendSection(const Message& message, const std::string& indent, std::string* out) {
  const Reflection& reflection = *message.GetReflection();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    absl::StrAppend(out, indent, field.name(), ":");
    if (field.is_repeated()) {
      AppendList(message, field, indent, out);
    } else if (!reflection.HasField(message, &field)) {
      absl::StrAppend(out, " null\n");
    } else if (field.message_type() != nullptr) {
      absl::StrAppend(out, "\n");
      AppendSection(reflection.GetMessage(message, &field), indent + "  ", out);
    } else {
      absl::StrAppend(out, " ", ScalarText(message, field), "\n");
    }
  }
}

nlohmann::ordered_json SectionJson(const Message& message) {
  const Reflection& reflection = *message.GetReflection();
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (int i = 0; i < message.GetDescriptor()->field_count(); ++i) {
    const FieldDescriptor& field = *message.GetDescriptor()->field(i);
    nlohmann::ordered_json& value = json[field.name()];
    if (field.is_repeated()) {
      value = nlohmann::ordered_json::array();
      for (int e = 0; e < reflection.FieldSize(message, &field); ++e) {
        value.push_back(reflection.GetRepeatedString(message, &field, e));
      }
    } else if (!reflection.HasField(message, &field)) {
      value = nullptr;
    } else if (field.message_type() != nullptr) {
      value = SectionJson(reflection.GetMessage(message, &field));
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      const int64_t number = reflection.GetInt64(message, &field);
      value = number;
      if (OptionOf(field).may_be_auto() && number == kAutoSize) value = "auto";
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      value = reflection.GetDouble(message, &field);
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_BOOL) {
      value = reflection.GetBool(message, &field);
    } else if (field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      value = EnumText(*reflection.GetEnum(message, &field));
    } else {
      value = reflection.GetString(message, &field);
    }
  }
  return json;
}

}  // namespace

std::string RecipeJson(const recipe::Recipe& recipe) {
  return SectionJson(recipe).dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string WriteRecipe(const recipe::Recipe& recipe) {
  std::string out;
  AppendSection(recipe, "", &out);
  return out;
}

}  // namespace thimble
