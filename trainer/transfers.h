// Where the transfers of offloaded values stand on the tape.
#pragma once

#include <cstdint>
#include <vector>

#include "trainer/tape.h"

namespace thimble {

// A step that moves bytes, of a layer.
Step MakeTransfer(TransferKind kind, std::vector<ValueId> inputs, std::vector<ValueId> outputs, int32_t layer);

// A copy to a slot of another tier, to be placed behind the step that writes the value.
struct PendingPut {
  ValueId value = kNoValue;
  ValueId slot = kNoValue;
};

// Rewrites the tape's list of steps: every put goes right behind its producer and is waited for kStepsOfPut steps
// later, or when kTransfersAhead more are begun; every get, which stands right before its wait where the value is first
// needed, starts kTransfersAhead needs earlier, though not before its put. Values that are under way hold their arena
// memory; results do not change.
void PlaceTransfers(const std::vector<PendingPut>& puts, Tape* tape);

inline constexpr int kTransfersAhead = 2;
inline constexpr int kStepsOfPut = 6;

// Gives every step that reads a streamed weight a copy fetched for it: one fetch for the uses within one pass over a
// layer, begun where the fetch before it is first used. To be called on a finished tape; nothing without streamed
// weights.
void FetchStreamedWeights(Tape* tape);

}  // namespace thimble
