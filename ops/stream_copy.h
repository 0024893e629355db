// Copies of memory that nobody reads soon.
#pragma once

#include <cstdint>

namespace thimble {

// As memcpy, past the caches where the processor can (x86): twice the rate between large blocks, as a line that is
// written whole is not read first, and what the kernels work on stays cached. Pages are copied four at a time: one
// stream alone waits for memory. `from` and `to` do not overlap.
void StreamCopy(void* to, const void* from, int64_t bytes);

// The same by all threads.
void ParallelStreamCopy(void* to, const void* from, int64_t bytes);

}  // namespace thimble
