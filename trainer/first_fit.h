// First-fit placement of blocks that live for a while: for each in turn the lowest range that is free throughout.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

namespace thimble {

struct LivingBlock {
  int32_t first_step = 0;
  int32_t last_step = 0;  // inclusive
  int64_t bytes = 0;
};

// Places `blocks` in `order` and writes the offset of each; order holds every index once. Returns the end of the
// highest, or `limit` as soon as one would end there or above (the offsets are then incomplete).
// O(n log n) where what is alive lies close together, as in a tape.
int64_t PlaceFirstFit(const std::vector<LivingBlock>& blocks, const std::vector<int32_t>& order,
                      std::vector<int64_t>* offsets, int64_t limit = std::numeric_limits<int64_t>::max());

}  // namespace thimble
