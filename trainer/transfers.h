// Where the transfers of offloaded values stand on the tape.
#pragma once

#include <vector>

#include "trainer/tape.h"

namespace thimble {

// A copy to a slot of another tier, to be placed behind the step that writes the value.
struct PendingPut {
  ValueId value = kNoValue;
  ValueId slot = kNoValue;
};

// Rewrites the tape's list of steps: every put goes right behind its producer; at most kTransfersAhead puts are under
// way before the oldest is waited for; every get, which stands right before its wait where the value is first needed,
// starts kTransfersAhead needs earlier. Values that are under way hold their arena memory; results do not change.
void PlaceTransfers(const std::vector<PendingPut>& puts, Tape* tape);

inline constexpr int kTransfersAhead = 2;

// Gives every step that reads a streamed weight a copy fetched for it: one fetch for the uses within one pass over a
// layer, begun where the fetch before it is first used. To be called on a finished tape; nothing without streamed
// weights.
void FetchStreamedWeights(Tape* tape);

}  // namespace thimble
