// The recipe schema itself: every option has help, names and defaults are well formed, byte and number texts.
#include "recipes/schema.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "recipes/nearest_name.h"
#include "recipes/recipe.pb.h"

namespace thimble {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;

void CheckSection(const Descriptor& section) {
  for (int i = 0; i < section.field_count(); ++i) {
    const FieldDescriptor& field = *section.field(i);
    SCOPED_TRACE(field.full_name());
    const recipe::Option& option = OptionOf(field);
    EXPECT_FALSE(option.help().empty());
    EXPECT_FALSE(AllowedText(field).empty());
    if (field.message_type() != nullptr) {
      CheckSection(*field.message_type());
      continue;
    }
    // Whoever reads the help must learn what happens when the option is not given.
    EXPECT_TRUE(field.has_default_value() || option.required() || !option.unset().empty());
    EXPECT_FALSE(field.has_default_value() && !option.unset().empty());
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_DOUBLE) {
      EXPECT_TRUE(!field.has_default_value() || InRange(option, field.default_value_double()));
      EXPECT_TRUE(option.has_min() && option.has_max());
    }
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_INT64) {
      EXPECT_TRUE(!field.has_default_value() || InRange(option, field.default_value_int64()));
      EXPECT_TRUE(option.has_min());
    }
  }
}

TEST(SchemaTest, EveryOptionIsDocumentedAndItsDefaultAllowed) { CheckSection(*recipe::Recipe::descriptor()); }

TEST(SchemaTest, EnumTextsDropThePrefix) {
  EXPECT_EQ(EnumTexts(*recipe::Data::LossOn_descriptor()), (std::vector<std::string>{"responses", "all"}));
  EXPECT_EQ(FindEnumValue(*recipe::Data::LossOn_descriptor(), "all")->number(), recipe::Data::LOSS_ON_ALL);
  EXPECT_EQ(FindEnumValue(*recipe::Data::LossOn_descriptor(), "ALL"), nullptr);
}

TEST(SchemaTest, ReadsAndWritesBytes) {
  const std::vector<std::pair<std::string, int64_t>> good = {{"0", 0},
                                                             {"1048576", 1048576},
                                                             {"8GiB", int64_t{8} << 30},
                                                             {"8 gib", int64_t{8} << 30},
                                                             {"500MB", 500000000},
                                                             {"1.5KiB", 1536},
                                                             {"-2KB", -2000}};
  for (const auto& [text, bytes] : good) {
    int64_t value = -1;
    EXPECT_TRUE(ParseBytes(text, &value)) << text;
    EXPECT_EQ(value, bytes) << text;
    EXPECT_TRUE(ParseBytes(BytesText(bytes), &value));
    EXPECT_EQ(value, bytes);
  }
  for (const char* text : {"", "GiB", "8 gigs", "1.5", "1e30GB", "99999999999TB", "1.2.3MB", "8G8", "nan"}) {
    int64_t value = 0;
    EXPECT_FALSE(ParseBytes(text, &value)) << text;
  }
}

TEST(SchemaTest, NumberTextIsShortAndExact) {
  EXPECT_EQ(NumberText(2e-4), "0.0002");
  EXPECT_EQ(NumberText(1e-8), "1e-08");
  EXPECT_EQ(NumberText(10000), "10000");
  EXPECT_EQ(NumberText(0), "0");
  for (const double value : {0.1, 1.0 / 3, 1e300, 5e-324, -2.5, std::numeric_limits<double>::max()}) {
    EXPECT_EQ(std::strtod(NumberText(value).c_str(), nullptr), value);
  }
}

TEST(NearestNameTest, FindsTyposOnly) {
  const std::vector<std::string> names = {"train", "tokenize", "generate"};
  EXPECT_EQ(NearestName("trian", names), "train");
  EXPECT_EQ(NearestName("Generate", names), "generate");
  EXPECT_EQ(NearestName("tokenise", names), "tokenize");
  EXPECT_EQ(NearestName("zzz", names), "");
  EXPECT_EQ(NearestName("", names), "");
  EXPECT_EQ(NearestName(std::string(100000, 'a'), names), "");
  EXPECT_EQ(EditDistance("ab", "ba"), 1);
  EXPECT_EQ(EditDistance("kitten", "sitting"), 3);
  EXPECT_EQ(EditDistance("", "abc"), 3);
}

}  // namespace
}  // namespace thimble
