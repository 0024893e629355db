// `thimble help recipe`: every option, from the schema itself.
#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace thimble {

// The page for `topic`: "recipe" for all sections, "recipe.data" or "recipe.data.columns" for one,
// "recipe.adapter.rank" for one option. An unknown one is InvalidArgument with the nearest name.
absl::StatusOr<std::string> RecipeHelp(const std::string& topic);

}  // namespace thimble
