// Memory tiers besides the arena: host memory and a spill file. Bytes go there and come back on a worker thread while
// the kernels run, or by all threads at once where that is faster.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// One tier: slots are offsets below bytes(), as a plan gave them. Transfers run in the order of their calls; the
// memory they read or write is the tier's from the call to the end of Wait. After a failed transfer the following ones
// do nothing, and every Wait says why.
class Tier {
 public:
  using Ticket = int64_t;
  enum class Mode : uint8_t {
    kBeside,  // on a worker thread, while the caller goes on
    kAtOnce,  // done when Put or Get returns
  };

  Tier(std::string name, int64_t bytes, Mode mode) : name_(std::move(name)), bytes_(bytes), mode_(mode) {}
  virtual ~Tier() = default;
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;

  Ticket Put(const void* from, int64_t slot, int64_t bytes);
  Ticket Get(int64_t slot, void* to, int64_t bytes);
  absl::Status Wait(Ticket ticket);
  // Reads at once on the calling thread, of which there may be several; what is read must not be under way elsewhere.
  // After a failure `to` is zero.
  void ReadNow(int64_t slot, void* to, int64_t bytes);
  // The first failure.
  absl::Status status();

  int64_t bytes() const { return bytes_; }
  // The end of the highest slot used so far.
  int64_t high_water_bytes() const { return high_water_; }
  // Counts a slot up to its end as the plan rounded it.
  void Touch(int64_t end) { high_water_ = std::max(high_water_, end); }
  Mode mode() const { return mode_; }
  // Bytes moved either way, and the seconds that Wait stood still.
  int64_t moved_bytes() const { return moved_; }
  double stalled_seconds() const { return stalled_; }

 protected:
  virtual absl::Status Write(const void* from, int64_t slot, int64_t bytes) = 0;
  virtual absl::Status Read(int64_t slot, void* to, int64_t bytes) = 0;
  // To be called first in the destructors of derived classes: ends the worker.
  void Stop();

 private:
  Ticket Submit(int64_t end, int64_t bytes, std::function<absl::Status()> job);
  void Work();

  std::string name_;
  int64_t bytes_;
  Mode mode_;
  int64_t high_water_ = 0;
  std::atomic<int64_t> moved_ = 0;
  double stalled_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<absl::Status()>> jobs_;
  Ticket submitted_ = 0;
  Ticket done_ = 0;
  bool stop_ = false;
  absl::Status status_;
  std::thread worker_;
};

// Host memory outside of the arena, zero until it is written. Pages are taken when first written and stay.
// ResourceExhausted where the process may not have the address space.
absl::StatusOr<std::unique_ptr<Tier>> MakeHostTier(int64_t bytes);
// That error, from errno, for any block of memory.
absl::Status NoAddressSpace(const std::string& what, int64_t bytes);

// A file of `bytes` in `folder` (TMPDIR or /tmp where empty) that has no name, so that nothing stays behind however the
// process ends; zero until it is written. Its space is taken at once: ResourceExhausted when the disk has less,
// NotFound or PermissionDenied when the folder is no place to write.
absl::StatusOr<std::unique_ptr<Tier>> MakeDiskTier(const std::string& folder, int64_t bytes);

}  // namespace thimble
