// Memory straight from the system: zero, on a page, taken when first touched and given back as a whole.
#pragma once

#include <cstdint>
#include <utility>

namespace thimble {

// Asks for huge pages (Linux, transparent huge pages): a matrix product touches thousands of small ones, more than a
// processor remembers the places of. Their tail stays small pages, so that no more is resident than was asked for.
class MemoryBlock {
 public:
  MemoryBlock() = default;
  // With `overcommit`, an address range that may be larger than memory; its pages count when they are touched.
  explicit MemoryBlock(int64_t bytes, bool overcommit = false);
  ~MemoryBlock();
  MemoryBlock(MemoryBlock&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  MemoryBlock& operator=(MemoryBlock&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  // False where the process may not have the address space; errno says why.
  bool ok() const { return bytes_ == 0 || data_ != nullptr; }
  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace thimble
