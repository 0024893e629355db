// Flags that `thimble eval` and `thimble compare` share.
#pragma once

#include <gflags/gflags_declare.h>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "recipes/command_line.h"
#include "recipes/evaluate.h"

DECLARE_string(reference);
DECLARE_string(slice_by);
DECLARE_bool(exact_match);

namespace thimble {

// Values, files and tasks, before a model is read.
absl::Status CheckEvaluationFlags(const CommandLine& line);
// What the flags say, and where they say nothing the model's own recipe.
absl::StatusOr<EvaluationOptions> EvaluationOptionsFromFlags(const ModelSession& model, const CommandLine& line);

}  // namespace thimble
