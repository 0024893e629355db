// Help pages by reflection over recipe.proto.
#include "recipes/recipe_help.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "recipes/nearest_name.h"
#include "recipes/recipe.pb.h"
#include "recipes/schema.h"
#include "recipes/text_layout.h"

namespace thimble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using recipe::Option;

void AppendOption(const FieldDescriptor& field, const std::string& key, std::string* page) {
  const Option& option = OptionOf(field);
  std::string what = AllowedText(field);
  if (!option.unit().empty() && !option.bytes()) absl::StrAppend(&what, ", ", option.unit());
  if (field.has_default_value()) absl::StrAppend(&what, ". Default: ", DefaultText(field));
  if (!option.unset().empty()) absl::StrAppend(&what, ". If not given: ", option.unset());
  if (option.required()) absl::StrAppend(&what, ". Required");
  AppendEntry("  " + key, what + ".", 30, page);
  AppendWrapped(option.help(), 6, page);
  if (!option.cost().empty()) AppendWrapped("Cost: " + option.cost() + ".", 6, page);
}

void AppendSection(const Descriptor& section, const std::string& prefix, std::string* page) {
  for (int i = 0; i < section.field_count(); ++i) {
    const FieldDescriptor& field = *section.field(i);
    if (field.message_type() == nullptr) AppendOption(field, prefix + field.name(), page);
  }
  for (int i = 0; i < section.field_count(); ++i) {
    const FieldDescriptor& field = *section.field(i);
    if (field.message_type() == nullptr) continue;
    const std::string key = prefix + field.name();
    absl::StrAppend(page, "\n");
    AppendEntry(key, OptionOf(field).help(), std::max<size_t>(14, key.size() + 2), page);
    AppendSection(*field.message_type(), key + ".", page);
  }
}

}  // namespace

absl::StatusOr<std::string> RecipeHelp(const std::string& topic) {
  const std::vector<std::string> parts = absl::StrSplit(topic, '.');
  const Descriptor* section = recipe::Recipe::descriptor();
  std::string prefix;
  std::string page;
  for (size_t i = 1; i < parts.size(); ++i) {
    const FieldDescriptor* field = section == nullptr ? nullptr : section->FindFieldByName(parts[i]);
    if (field == nullptr) {
      const std::vector<std::string> names = section == nullptr ? std::vector<std::string>() : OptionNames(*section);
      const std::string nearest = NearestName(parts[i], names);
      const std::string hint = nearest.empty() ? "" : absl::StrCat("; did you mean 'recipe.", prefix, nearest, "'?");
      return absl::InvalidArgumentError(
          WithPointer(absl::StrCat("no recipe option '", prefix, parts[i], "'", hint), "thimble help recipe"));
    }
    section = field->message_type();
    if (section == nullptr) AppendOption(*field, prefix + field->name(), &page);
    prefix = absl::StrCat(prefix, field->name(), ".");
    if (section != nullptr && i + 1 == parts.size()) {
      AppendEntry(prefix.substr(0, prefix.size() - 1), OptionOf(*field).help(), 14, &page);
    }
  }
  if (parts.size() == 1) {
    page =
        "A recipe is a YAML file with the options below; what it does not say has its\n"
        "default. --set KEY=VALUE on the command line overrides any of them, null takes\n"
        "one back.\n\n";
  }
  if (section != nullptr) AppendSection(*section, prefix, &page);
  return page;
}

}  // namespace thimble
