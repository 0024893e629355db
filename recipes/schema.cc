// Reflection over recipe.proto and the text forms of numbers, bytes and enums.
#include "recipes/schema.h"

#include <cctype>
#include <charconv>
#include <cmath>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "ops/check.h"

namespace thimble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;
using google::protobuf::FieldDescriptor;
using recipe::Option;

struct ByteUnit {
  const char* name;
  int64_t bytes;
};
// Binary units first, so that an exact one is preferred when bytes are written.
constexpr ByteUnit kByteUnits[] = {{"TiB", int64_t{1} << 40},
                                   {"GiB", int64_t{1} << 30},
                                   {"MiB", int64_t{1} << 20},
                                   {"KiB", int64_t{1} << 10},
                                   {"TB", 1000000000000},
                                   {"GB", 1000000000},
                                   {"MB", 1000000},
                                   {"KB", 1000},
                                   {"B", 1}};

// LOSS_ON_ for LossOn.
std::string EnumPrefix(const EnumDescriptor& type) {
  std::string prefix;
  for (const char c : type.name()) {
    if (std::isupper(static_cast<unsigned char>(c)) && !prefix.empty()) prefix += '_';
    prefix += absl::ascii_toupper(c);
  }
  return prefix + "_";
}

std::string RangeText(const Option& option) {
  std::string text;
  if (option.has_min()) {
    if (option.above_min()) {
      absl::StrAppend(&text, " above ", NumberText(option.min()));
    } else {
      absl::StrAppend(&text, option.has_max() ? " from " : " of at least ", NumberText(option.min()));
    }
  }
  if (option.has_max()) {
    if (option.below_max()) {
      absl::StrAppend(&text, " to below ", NumberText(option.max()));
    } else {
      absl::StrAppend(&text, option.above_min() ? " and at most " : " to ", NumberText(option.max()));
    }
  }
  return text;
}

void AppendKeys(const Descriptor& section, const std::string& prefix, std::vector<std::string>* keys) {
  for (int i = 0; i < section.field_count(); ++i) {
    const FieldDescriptor& field = *section.field(i);
    keys->push_back(prefix + field.name());
    if (field.message_type() != nullptr) AppendKeys(*field.message_type(), keys->back() + ".", keys);
  }
}

}  // namespace

const Option& OptionOf(const FieldDescriptor& field) { return field.options().GetExtension(recipe::option); }

std::string EnumText(const EnumValueDescriptor& value) {
  const std::string prefix = EnumPrefix(*value.type());
  CHECK(value.name().compare(0, prefix.size(), prefix) == 0) << value.full_name() << " lacks the prefix " << prefix;
  return absl::AsciiStrToLower(value.name().substr(prefix.size()));
}

std::vector<std::string> EnumTexts(const EnumDescriptor& type) {
  std::vector<std::string> texts;
  for (int i = 0; i < type.value_count(); ++i) texts.push_back(EnumText(*type.value(i)));
  return texts;
}

const EnumValueDescriptor* FindEnumValue(const EnumDescriptor& type, std::string_view text) {
  for (int i = 0; i < type.value_count(); ++i) {
    if (EnumText(*type.value(i)) == text) return type.value(i);
  }
  return nullptr;
}

std::string AllowedText(const FieldDescriptor& field) {
  const Option& limits = OptionOf(field);
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      if (limits.bytes()) return "a number of bytes such as 8GiB, 500MB or 1048576";
      return "a whole number" + RangeText(limits) + (limits.may_be_auto() ? ", or auto" : "");
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return "a number" + RangeText(limits);
    case FieldDescriptor::CPPTYPE_BOOL:
      return "true or false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return (field.enum_type()->value_count() > 1 ? "one of " : "") +
             absl::StrJoin(EnumTexts(*field.enum_type()), ", ");
    case FieldDescriptor::CPPTYPE_STRING:
      if (field.is_repeated()) return limits.path() ? "a path or a list of paths" : "a text or a list of texts";
      return limits.path() ? "a path" : "a text";
    case FieldDescriptor::CPPTYPE_MESSAGE:
      return "the keys " + absl::StrJoin(OptionNames(*field.message_type()), ", ");
    default:
      CHECK(false) << field.full_name() << " has a type that recipes do not use";
  }
  return "";
}

std::string DefaultText(const FieldDescriptor& field) {
  if (!field.has_default_value()) return "";
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64:
      return OptionOf(field).bytes() ? BytesText(field.default_value_int64())
                                     : absl::StrCat(field.default_value_int64());
    case FieldDescriptor::CPPTYPE_DOUBLE:
      return NumberText(field.default_value_double());
    case FieldDescriptor::CPPTYPE_BOOL:
      return field.default_value_bool() ? "true" : "false";
    case FieldDescriptor::CPPTYPE_ENUM:
      return EnumText(*field.default_value_enum());
    default:
      return field.default_value_string();
  }
}

bool InRange(const Option& option, double value) {
  if (option.has_min() && (value < option.min() || (option.above_min() && value == option.min()))) return false;
  if (option.has_max() && (value > option.max() || (option.below_max() && value == option.max()))) return false;
  return true;
}

std::vector<std::string> OptionNames(const Descriptor& section) {
  std::vector<std::string> names;
  for (int i = 0; i < section.field_count(); ++i) names.push_back(section.field(i)->name());
  return names;
}

std::vector<std::string> AllKeys(const Descriptor& root) {
  std::vector<std::string> keys;
  AppendKeys(root, "", &keys);
  return keys;
}

std::string NumberText(double value) {
  // Plain digits where they are short (0.0002, not 2e-04), as people write them.
  char buffer[64];
  if (std::abs(value) >= 1e-4 && std::abs(value) < 1e15) {
    const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value, std::chars_format::fixed);
    return std::string(buffer, end.ptr);
  }
  if (value == 0) return "0";
  const auto end = std::to_chars(buffer, buffer + sizeof(buffer), value);
  return std::string(buffer, end.ptr);
}

std::string BytesText(int64_t bytes) {
  for (const ByteUnit& unit : kByteUnits) {
    if (unit.bytes > 1 && bytes != 0 && bytes % unit.bytes == 0) return absl::StrCat(bytes / unit.bytes, unit.name);
  }
  return absl::StrCat(bytes);
}

bool ParseBytes(std::string_view text, int64_t* bytes) {
  const size_t digits = std::min(text.size(), text.find_first_not_of("0123456789.-"));
  std::string unit(text.substr(digits));
  const std::string number(text.substr(0, digits));
  unit.erase(0, std::min(unit.size(), unit.find_first_not_of(' ')));
  if (unit.empty()) return absl::SimpleAtoi(number, bytes);
  double value = 0;
  if (!absl::SimpleAtod(number, &value)) return false;
  for (const ByteUnit& candidate : kByteUnits) {
    if (!absl::EqualsIgnoreCase(unit, candidate.name)) continue;
    value *= static_cast<double>(candidate.bytes);
    if (!(std::abs(value) < 9e18)) return false;
    *bytes = static_cast<int64_t>(std::llround(value));
    return true;
  }
  return false;
}

}  // namespace thimble
