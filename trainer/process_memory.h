// What the kernel says of this process's memory, and of how much it may have.
#pragma once

#include <cstdint>
#include <string>

namespace thimble {

// Most and present bytes of resident memory (VmHWM and VmRSS of /proc/self/status); 0 where there is no such file.
int64_t PeakResidentBytes();
int64_t ResidentBytes();

struct MachineMemory {
  int64_t limit_bytes = 0;      // that this process may have at most; 0: unknown
  std::string limited_by;       // "this machine has", "the control group allows", "ulimit -v allows"
  int64_t available_bytes = 0;  // what it has and what is free besides, without swapping; 0: unknown
};
// The least of the machine's memory with its swap, the limits of the process's control groups (versions 1 and 2) and
// of its address space. `root` stands before /proc and /sys, for tests.
MachineMemory ReadMachineMemory(const std::string& root = "");

}  // namespace thimble
