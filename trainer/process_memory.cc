#include "trainer/process_memory.h"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace thimble {
namespace {

// "VmHWM:     1234 kB" in bytes; 0 where there is no such line.
int64_t KilobytesOf(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (!absl::StartsWith(line, key)) continue;
    int64_t kilobytes = 0;
    std::istringstream(line.substr(key.size())) >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

// A file that holds one number; -1 where there is none ("max").
int64_t NumberIn(const std::string& path) {
  std::ifstream file(path);
  std::string word;
  int64_t number = -1;
  return (file >> word) && absl::SimpleAtoi(word, &number) ? number : -1;
}

class Limits {
 public:
  void Add(int64_t limit, int64_t available, const char* name) {
    if (limit > 0 && (memory_.limit_bytes == 0 || limit < memory_.limit_bytes)) {
      memory_.limit_bytes = limit;
      memory_.limited_by = name;
    }
    if (available >= 0 && (!has_available_ || available < memory_.available_bytes)) {
      memory_.available_bytes = available;
      has_available_ = true;
    }
  }

  // A group is limited by those above it as well.
  void AddGroups(const std::string& mount, std::string group, const char* limit_file, const char* usage_file) {
    while (true) {
      const std::string folder = absl::StrCat(mount, group == "/" ? "" : group, "/");
      const int64_t limit = NumberIn(folder + limit_file);
      const int64_t usage = NumberIn(folder + usage_file);
      // Version 1 says "no limit" with a number above all memory.
      if (limit > 0 && limit < (int64_t{1} << 60)) {
        Add(limit, usage < 0 ? -1 : std::max<int64_t>(0, limit - usage), "the control group allows");
      }
      const size_t slash = group.rfind('/');
      if (group == "/" || slash == std::string::npos) return;
      group = slash == 0 ? "/" : group.substr(0, slash);
    }
  }

  const MachineMemory& memory() const { return memory_; }

 private:
  MachineMemory memory_;
  bool has_available_ = false;
};

}  // namespace

int64_t PeakResidentBytes() { return KilobytesOf("/proc/self/status", "VmHWM:"); }
int64_t ResidentBytes() { return KilobytesOf("/proc/self/status", "VmRSS:"); }

MachineMemory ReadMachineMemory(const std::string& root) {
  Limits limits;
  const int64_t resident = KilobytesOf(root + "/proc/self/status", "VmRSS:");
  const std::string meminfo = root + "/proc/meminfo";
  if (const int64_t total = KilobytesOf(meminfo, "MemTotal:"); total > 0) {
    limits.Add(total + KilobytesOf(meminfo, "SwapTotal:"), KilobytesOf(meminfo, "MemAvailable:"), "this machine has");
  }
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    // "0::/group" in version 2, "4:memory:/group" in version 1.
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || parts[2].empty()) continue;
    if (parts[0] == "0" && parts[1].empty()) {
      limits.AddGroups(root + "/sys/fs/cgroup", parts[2], "memory.max", "memory.current");
    } else if (parts[1] == "memory") {
      limits.AddGroups(root + "/sys/fs/cgroup/memory", parts[2], "memory.limit_in_bytes", "memory.usage_in_bytes");
    }
  }
  rlimit space = {};
  if (::getrlimit(RLIMIT_AS, &space) == 0 && space.rlim_cur != RLIM_INFINITY) {
    limits.Add(static_cast<int64_t>(space.rlim_cur), -1, "ulimit -v allows");
  }
  MachineMemory memory = limits.memory();
  if (memory.available_bytes > 0) memory.available_bytes += resident;
  return memory;
}

}  // namespace thimble
