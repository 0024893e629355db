// What may be changed about a recipe so that its plan takes less memory.
#pragma once

#include <string>
#include <vector>

#include "recipes/plan_changes.h"
#include "recipes/planned_run.h"

namespace thimble {

using Assignments = std::vector<std::string>;  // "memory.activations=recompute", as for --set

// Settings of one kind, mildest first; none where the recipe leaves nothing to change.
struct Family {
  ChangeEffect effect = ChangeEffect::kOther;
  std::vector<Assignments> settings;
  bool longest_sequence = false;  // in place of settings: data.seq_len as long as fits
};

// Those that the recipe leaves something to change in, mildest first. An adapter's rank is not among them: it is what
// the adapter can learn.
std::vector<Family> FamiliesOf(const PlannedRun& run);

}  // namespace thimble
