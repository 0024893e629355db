// Options that make no sense together.
#pragma once

#include <functional>
#include <string>

#include "absl/status/status.h"
#include "recipes/recipe.pb.h"

namespace thimble {

// InvalidArgument for the first refused pair of options in `recipe`. `place` says where a key was given
// ("my.yaml:12", "--set a.b=c"), or "" where it was not. Whether a key with a default was given plays no part, so a
// recipe with all defaults written out is judged as one without.
absl::Status CheckRefusedPairs(const recipe::Recipe& recipe,
                               const std::function<std::string(const std::string& key)>& place);

}  // namespace thimble
