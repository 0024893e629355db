// Writes a recipe as YAML.
#pragma once

#include <string>

#include "recipes/recipe.pb.h"

namespace thimble {

// Every key of the schema in its order, `null` where an option is not set. Reading the text gives the same message.
std::string WriteRecipe(const recipe::Recipe& recipe);

}  // namespace thimble
