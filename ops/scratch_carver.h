// Cuts named arrays, 64-byte aligned, out of the scratch memory that a kernel was handed. The same layout function run
// without memory gives the size to ask for.
#pragma once

#include <cstdint>

#include "ops/check.h"
#include "ops/scratch_buffer.h"
#include "ops/view.h"

namespace thimble {

class ScratchCarver {
 public:
  // Without memory: Take returns null and used() counts.
  ScratchCarver() : counting_(true) {}
  explicit ScratchCarver(Scratch scratch) : scratch_(scratch) {}

  template <typename T>
  T* Take(int64_t count) {
    const int64_t begin = used_;
    used_ += Aligned(count * static_cast<int64_t>(sizeof(T)));
    if (counting_) return nullptr;
    CHECK_LE(used_, scratch_.bytes) << "bytes of scratch";
    return reinterpret_cast<T*>(static_cast<char*>(scratch_.data) + begin);
  }
  int64_t used() const { return used_; }

 private:
  Scratch scratch_;
  bool counting_ = false;
  int64_t used_ = 0;
};

}  // namespace thimble
