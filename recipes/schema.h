// What the recipe schema says about its options, read from it by reflection: names, defaults, ranges, help.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "google/protobuf/descriptor.h"
#include "recipes/option.pb.h"

namespace thimble {

// The help and the limits of an option.
const recipe::Option& OptionOf(const google::protobuf::FieldDescriptor& field);

// "nf4" for FORMAT_NF4 of the enum Format: the name without the enum's prefix, in lower case.
std::string EnumText(const google::protobuf::EnumValueDescriptor& value);
std::vector<std::string> EnumTexts(const google::protobuf::EnumDescriptor& type);
// The value with this text, or nullptr.
const google::protobuf::EnumValueDescriptor* FindEnumValue(const google::protobuf::EnumDescriptor& type,
                                                           std::string_view text);

// What `auto` is in a message.
inline constexpr int64_t kAutoSize = 0;

// What a value of this option may be: "a whole number from 1 to 4096", "one of none, lora, dora", "true or false".
std::string AllowedText(const google::protobuf::FieldDescriptor& field);
// The default as it would stand in a recipe, or "" where there is none.
std::string DefaultText(const google::protobuf::FieldDescriptor& field);

// True where `value` lies in the option's range.
bool InRange(const recipe::Option& option, double value);

// Names of a section's options, in order.
std::vector<std::string> OptionNames(const google::protobuf::Descriptor& section);
// Every option of the schema by its full key ("adapter.rank"), sections first, in order.
std::vector<std::string> AllKeys(const google::protobuf::Descriptor& root);

// The shortest decimal text that reads back as `value`.
std::string NumberText(double value);
// Bytes in the largest unit that is exact: 8GiB, 500MB, 1000.
std::string BytesText(int64_t bytes);
// Reads 8GiB, 500MB, 1.5GiB or 1000; units KB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024.
bool ParseBytes(std::string_view text, int64_t* bytes);

}  // namespace thimble
