// JSON files with errors that name the file and the place.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "nlohmann/json.hpp"

namespace thimble {

// The object that `path` holds. NotFound and the like as ReadFile; InvalidArgument with line and column where it is not
// JSON, or where it is not an object.
absl::StatusOr<nlohmann::json> ReadJsonObject(const std::string& path);

}  // namespace thimble
