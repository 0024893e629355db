// The section memory as a plan of what becomes of saved values.
#pragma once

#include <cstdint>

#include "absl/status/statusor.h"
#include "recipes/recipe.pb.h"
#include "trainer/save_plan.h"

namespace thimble {

// InvalidArgument when memory.layers is malformed or names a layer that the model does not have.
absl::StatusOr<SavePlan> SavePlanOf(const recipe::Memory& memory, int64_t num_layers);

}  // namespace thimble
