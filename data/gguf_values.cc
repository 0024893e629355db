// Values of a GGUF file's metadata, by key.
#include <cmath>

#include "absl/strings/str_cat.h"
#include "data/gguf_header.h"
#include "ops/check.h"

namespace thimble {
namespace {

bool IsInteger(const GgufValue& value) {
  return !value.is_array && value.integers.size() == 1 && value.type != GgufType::kBool;
}

}  // namespace

std::string GgufValue::Text() const {
  if (is_array) {
    return absl::StrCat(size(), " ", std::string(NameOf(type)), size() == 1 ? " value" : " values");
  }
  if (type == GgufType::kString) return strings[0];
  if (type == GgufType::kBool) return integers[0] != 0 ? "true" : "false";
  return integers.empty() ? absl::StrCat(floats[0]) : absl::StrCat(integers[0]);
}

const GgufValue* GgufHeader::Find(std::string_view key) const {
  const auto found = index_.find(std::string(key));
  return found == index_.end() ? nullptr : &entries_[found->second].value;
}

absl::Status GgufHeader::Error(const std::string& key, const std::string& expected) const {
  const GgufValue* value = Find(key);
  std::string found = "nothing";
  if (value != nullptr) {
    found = value->Text();
    if (found.size() > 60) found = found.substr(0, 57) + "...";
    if (!value->is_array) found = absl::StrCat(std::string(NameOf(value->type)), " ", found);
  }
  return absl::InvalidArgumentError(
      absl::StrCat(path_, ": metadata \"", key, "\": expected ", expected, ", found ", found));
}

absl::StatusOr<int64_t> GgufHeader::Integer(const std::string& key, int64_t low, int64_t high) const {
  const GgufValue* value = Find(key);
  if (value == nullptr || !IsInteger(*value) || value->integers[0] < low || value->integers[0] > high) {
    return Error(key, absl::StrCat("an integer from ", low, " to ", high));
  }
  return value->integers[0];
}

absl::StatusOr<int64_t> GgufHeader::Integer(const std::string& key, int64_t low, int64_t high, int64_t absent) const {
  if (Find(key) == nullptr) return absent;
  return Integer(key, low, high);
}

absl::StatusOr<int64_t> GgufHeader::TokenId(const std::string& key, int64_t count) const {
  const GgufValue* value = Find(key);
  const bool none = value == nullptr || (IsInteger(*value) && value->integers[0] == int64_t{0xffffffff});
  if (none) return -1;
  return Integer(key, 0, count - 1);
}

absl::StatusOr<double> GgufHeader::Float(const std::string& key, double absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_array || value->floats.size() != 1 || !std::isfinite(value->floats[0])) {
    return Error(key, "a finite f32");
  }
  return value->floats[0];
}

absl::StatusOr<bool> GgufHeader::Bool(const std::string& key, bool absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_array || value->type != GgufType::kBool) return Error(key, "a bool");
  return value->integers[0] != 0;
}

absl::StatusOr<std::string> GgufHeader::String(const std::string& key, const std::string& absent) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return absent;
  if (value->is_array || value->type != GgufType::kString) return Error(key, "a string");
  return value->strings[0];
}

absl::StatusOr<const GgufValue*> GgufHeader::Array(const std::string& key, GgufType type, int64_t count) const {
  const GgufValue* value = Find(key);
  if (value == nullptr) return nullptr;
  if (!value->is_array || value->type != type || (count >= 0 && value->size() != count)) {
    return Error(key, count < 0 ? absl::StrCat("an array of ", std::string(NameOf(type)))
                                : absl::StrCat(count, " values of ", std::string(NameOf(type))));
  }
  return value;
}

}  // namespace thimble
