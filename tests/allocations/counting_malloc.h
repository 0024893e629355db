// What this program takes from the heap and by anonymous mappings: its test binary has malloc and its kin, through
// which operator new goes, and mmap replaced by counting ones.
#pragma once

#include <cstdint>

namespace thimble {

inline constexpr int64_t kLargeAllocation = 64 << 10;

struct HeapUse {
  int64_t live_bytes = 0;  // on the heap
  int64_t large = 0;       // allocations and mappings above kLargeAllocation so far
  int64_t largest = 0;     // of those, since ForgetLargest()
  int64_t count = 0;       // of allocations so far
};
HeapUse CurrentHeapUse();
void ForgetLargest();

}  // namespace thimble
