#include "trainer/process_memory.h"

#include <cstdio>
#include <cstring>

namespace thimble {
namespace {

int64_t StatusBytes(const char* key) {
  std::FILE* file = std::fopen("/proc/self/status", "r");
  if (file == nullptr) return 0;
  char line[256];
  long long kilobytes = 0;
  while (std::fgets(line, sizeof(line), file) != nullptr) {
    if (std::strncmp(line, key, std::strlen(key)) != 0) continue;
    if (std::sscanf(line + std::strlen(key), " %lld", &kilobytes) != 1) kilobytes = 0;
    break;
  }
  std::fclose(file);
  return kilobytes * 1024;
}

}  // namespace

int64_t PeakResidentBytes() { return StatusBytes("VmHWM:"); }
int64_t ResidentBytes() { return StatusBytes("VmRSS:"); }

}  // namespace thimble
