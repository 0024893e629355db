// What the kernel says of this process's memory.
#pragma once

#include <cstdint>

namespace thimble {

// Most and present bytes of resident memory (VmHWM and VmRSS of /proc/self/status); 0 where there is no such file.
int64_t PeakResidentBytes();
int64_t ResidentBytes();

}  // namespace thimble
