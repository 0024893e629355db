#include "ops/memory_block.h"

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>

namespace thimble {

MemoryBlock::MemoryBlock(int64_t bytes, bool overcommit) : bytes_(bytes) {
  if (bytes_ == 0) return;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (overcommit ? MAP_NORESERVE : 0);
  void* block = ::mmap(nullptr, static_cast<size_t>(bytes_), PROT_READ | PROT_WRITE, flags, -1, 0);
  if (block == MAP_FAILED) return;
  data_ = static_cast<char*>(block);
#ifdef MADV_HUGEPAGE
  // A wish: without it everything works, slower.
  ::madvise(block, static_cast<size_t>(bytes_), MADV_HUGEPAGE);
#endif
}

MemoryBlock::~MemoryBlock() {
  if (data_ != nullptr) ::munmap(data_, static_cast<size_t>(bytes_));
}

}  // namespace thimble
