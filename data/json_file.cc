#include "data/json_file.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "ops/check.h"

namespace thimble {

absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadFile(path));
  try {
    nlohmann::json value = nlohmann::json::parse(text);
    if (!value.is_object()) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": expected a JSON object, found ", value.type_name()));
    }
    return value;
  } catch (const nlohmann::json::parse_error& error) {
    const size_t end = std::min(error.byte > 0 ? error.byte - 1 : 0, text.size());
    const auto line = std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(end), '\n') + 1;
    const size_t line_begin = end == 0 ? std::string::npos : text.rfind('\n', end - 1);
    const size_t column = line_begin == std::string::npos ? end + 1 : end - line_begin;
    return absl::InvalidArgumentError(absl::StrCat(path, ": is not valid JSON at line ", line, ", column ", column,
                                                   end == text.size() ? " (its end: is it cut short?)" : ""));
  }
}

}  // namespace thimble
