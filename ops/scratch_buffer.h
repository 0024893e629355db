// Memory that begins on a cache line: how sizes are rounded to one, how a kernel cuts its scratch into parts, and a
// buffer of a caller who owns such memory.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

#include "ops/check.h"
#include "ops/view.h"

namespace thimble {

constexpr int64_t kAlignment = 64;

// `bytes` rounded up to whole cache lines.
constexpr int64_t Aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The front of `scratch` as `count` values of T; what is left begins aligned again.
template <typename T>
T* TakeScratch(Scratch* scratch, int64_t count) {
  const int64_t bytes = Aligned(count * static_cast<int64_t>(sizeof(T)));
  CHECK_LE(bytes, scratch->bytes) << "bytes of scratch";
  T* taken = static_cast<T*>(scratch->data);
  *scratch = {static_cast<char*>(scratch->data) + bytes, scratch->bytes - bytes};
  return taken;
}

// Owns aligned memory of exactly the size asked for; contents undefined.
class ScratchBuffer {
 public:
  explicit ScratchBuffer(int64_t bytes = 0) { Reserve(bytes); }

  // At least `bytes` from now on. Grows, never shrinks; growing loses what was there.
  void Reserve(int64_t bytes) {
    if (bytes <= bytes_) return;
    data_.reset();
    data_.reset(static_cast<char*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(kAlignment))));
    bytes_ = bytes;
  }
  Scratch view() const { return {data_.get(), bytes_}; }
  int64_t bytes() const { return bytes_; }

 private:
  struct Free {
    void operator()(char* data) const { ::operator delete(data, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<char, Free> data_;
  int64_t bytes_ = 0;
};

}  // namespace thimble
