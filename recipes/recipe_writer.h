// Writes a recipe as YAML and as JSON.
#pragma once

#include <string>

#include "recipes/recipe.pb.h"

namespace thimble {

// Every key of the schema in its order, `null` where an option is not set. Reading the text gives the same message.
std::string WriteRecipe(const recipe::Recipe& recipe);

// The same keys and values as one JSON object on one line, with a line end. Bytes are numbers.
std::string RecipeJson(const recipe::Recipe& recipe);

}  // namespace thimble
