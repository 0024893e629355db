// memory.activations: auto. The fastest plan for saved values that fits the stated budgets.
#pragma once

#include <cstdint>

#include "recipes/recipe.pb.h"
#include "trainer/decoder.h"
#include "trainer/engine.h"
#include "trainer/machine_rates.h"
#include "trainer/run_plan.h"

namespace thimble {

struct ChosenSavePlan {
  EngineOptions options;         // as given, with the plan and, where nothing else fits, tiles and idle values
  bool fits = false;             // false: nothing fits, and this takes the fewest device bytes
  double step_seconds = 0;       // predicted
  double keep_step_seconds = 0;  // of keeping everything: no plan is faster
};

// Tries every sensible choice by kinds of values for all layers, pairs of them with as many of the last layers as fit
// under the faster one (the pairs that promise most), and saving the results of every second, fourth or eighth layer
// only, and takes a mixture only where it promises more than predictions err; where none of these fits and the base is
// frozen, the same in tiles of the sequence with idle values in host memory or the spill file. Each candidate is
// planned for real. The host and disk tiers are used only where they have a budget. `besides_bytes`: of the device tier
// beside the arena.
ChosenSavePlan ChooseSavePlan(const recipe::Recipe& recipe, const Decoder& decoder, Store* store,
                              const EngineOptions& options, const TierBudgets& budgets, int64_t besides_bytes,
                              const MachineRates& rates);

}  // namespace thimble
