// Reads a recipe file into the schema, strictly, by reflection.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recipes/recipe.pb.h"

namespace thimble {

// The schema's messages are in namespace recipe, apart from the engine's own names.
using recipe::Recipe;

// Reads the YAML file `path`, then applies `overrides`, each "a.b=value" as given to --set (the value is YAML; lists
// are written [a, b]). `null` takes a key back.
//
// In the result every option that has a default is set, and every path is absolute: relative ones are taken from the
// recipe's folder, those in overrides from the working folder, and ~/ is the home folder.
//
// An unknown, repeated or missing key, a wrong type, a value out of range and a refused pair of options are
// InvalidArgument: "FILE:LINE: KEY: found ..., expected ...; did you mean ...?", with "--set a.b=value" in the place of
// FILE:LINE for overrides. A file that cannot be read is as ReadFile says.
//
// For RecipeUse::kPlan data.train may be missing.
enum class RecipeUse { kRun, kPlan };
absl::StatusOr<Recipe> ReadRecipe(const std::string& path, const std::vector<std::string>& overrides,
                                  RecipeUse use = RecipeUse::kRun);

// The same for a text; `path` names it in errors and gives the folder of relative paths.
absl::StatusOr<Recipe> ParseRecipe(std::string_view text, const std::string& path,
                                   const std::vector<std::string>& overrides, RecipeUse use = RecipeUse::kRun);

// Whether trainable.weights is `all`, given or by default.
bool TrainsAllWeights(const Recipe& recipe);
// Whether embedding and output layer train, given or by default.
bool TrainsEmbeddings(const Recipe& recipe);

}  // namespace thimble
