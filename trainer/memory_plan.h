// Lifetimes to offsets in one arena a tier, before anything is allocated.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "trainer/tape.h"

namespace thimble {

// Memory that one or more values share in turn (in-place steps), or a step's scratch.
struct PlannedBuffer {
  int32_t first_step = 0;
  int32_t last_step = 0;  // inclusive
  int64_t bytes = 0;      // rounded up to 64
  int64_t offset = 0;
  std::string name;  // of the first value in it
  bool scratch = false;
};

struct MemoryPlan {
  std::vector<PlannedBuffer> buffers;
  std::vector<int32_t> buffer_of_value;  // -1 when the value is not in the arena
  std::vector<int32_t> scratch_of_step;  // -1 when the step takes none
  int64_t peak_bytes = 0;                // size of the arena
  int64_t lower_bound_bytes = 0;         // most bytes alive at one step: no plan can be smaller
  int32_t peak_step = 0;                 // a step at which the lower bound is reached
  int64_t activation_bytes_at_peak = 0;
  int64_t scratch_bytes_at_peak = 0;
  std::vector<int64_t> live_bytes;  // by step

  // Buffers alive at peak_step, largest first.
  std::vector<PlannedBuffer> AliveAtPeak() const;
};

// `pinned` values (read from outside after the run) live to the end. A value that is never read lives at its step only.
// Of the values placed in `tier`; scratch is the arena's (kActivation).
MemoryPlan PlanMemory(const Tape& tape, const std::vector<ValueId>& pinned, Placement tier = Placement::kActivation);

// One plan a tier.
struct TierPlans {
  MemoryPlan device;
  MemoryPlan host;
  MemoryPlan disk;
};
TierPlans PlanTiers(const Tape& tape, const std::vector<ValueId>& pinned);

}  // namespace thimble
