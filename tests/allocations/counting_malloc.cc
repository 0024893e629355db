#include "tests/allocations/counting_malloc.h"

#include <errno.h>
#include <malloc.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>

// glibc's own, under the names that stay when the usual ones are replaced.
extern "C" {
void* __libc_malloc(size_t size);
void __libc_free(void* pointer);
void* __libc_calloc(size_t count, size_t size);
void* __libc_realloc(void* pointer, size_t size);
void* __libc_memalign(size_t alignment, size_t size);
}

namespace thimble {
namespace {

std::atomic<int64_t> live_bytes{0};
std::atomic<int64_t> large{0};
std::atomic<int64_t> largest{0};
std::atomic<int64_t> count{0};

void CountLarge(size_t size) {
  const int64_t bytes = static_cast<int64_t>(size);
  if (bytes <= kLargeAllocation) return;
  ++large;
  int64_t seen = largest.load();
  while (bytes > seen && !largest.compare_exchange_weak(seen, bytes)) {
  }
}

void* Taken(void* pointer, size_t size) {
  if (pointer == nullptr) return nullptr;
  ++count;
  live_bytes += static_cast<int64_t>(::malloc_usable_size(pointer));
  CountLarge(size);
  return pointer;
}

void Given(void* pointer) {
  if (pointer != nullptr) live_bytes -= static_cast<int64_t>(::malloc_usable_size(pointer));
}

}  // namespace

HeapUse CurrentHeapUse() { return {live_bytes.load(), large.load(), largest.load(), count.load()}; }
void ForgetLargest() { largest = 0; }

}  // namespace thimble

extern "C" {

void* malloc(size_t size) { return thimble::Taken(__libc_malloc(size), size); }
void free(void* pointer) {
  thimble::Given(pointer);
  __libc_free(pointer);
}
void* calloc(size_t count, size_t size) { return thimble::Taken(__libc_calloc(count, size), count * size); }
void* realloc(void* pointer, size_t size) {
  const int64_t before = pointer == nullptr ? 0 : static_cast<int64_t>(::malloc_usable_size(pointer));
  void* moved = __libc_realloc(pointer, size);
  if (moved != nullptr || size == 0) thimble::live_bytes -= before;
  return thimble::Taken(moved, size);
}
void* memalign(size_t alignment, size_t size) { return thimble::Taken(__libc_memalign(alignment, size), size); }
void* aligned_alloc(size_t alignment, size_t size) { return thimble::Taken(__libc_memalign(alignment, size), size); }
int posix_memalign(void** out, size_t alignment, size_t size) {
  void* pointer = thimble::Taken(__libc_memalign(alignment, size), size);
  if (pointer == nullptr) return ENOMEM;
  *out = pointer;
  return 0;
}

void* mmap(void* address, size_t length, int protection, int flags, int file, off_t offset) {
  if ((flags & MAP_ANONYMOUS) != 0) thimble::CountLarge(length);
  return reinterpret_cast<void*>(::syscall(SYS_mmap, address, length, protection, flags, file, offset));
}

}  // extern "C"
