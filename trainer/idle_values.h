// Values that no step needs for a while leave the arena until they are needed again.
#pragma once

#include <vector>

#include "trainer/save_plan.h"
#include "trainer/tape.h"

namespace thimble {

// Rewrites a finished tape: an activation is put to a tier behind its producer, and fetched ahead of every stretch of
// uses that lies far behind the one before, counted in what the steps between write: at least kIdleFactor times its own
// bytes. Where `plan` offloads a value (its own or its layer's), it goes to that tier, otherwise to `tier`, kHost or
// kDisk. Pinned values and small ones stay. Results do not change.
void MoveIdleValues(const SavePlan& plan, Placement tier, const std::vector<ValueId>& pinned, Tape* tape);

inline constexpr int64_t kIdleFactor = 8;

}  // namespace thimble
