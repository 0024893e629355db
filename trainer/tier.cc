#include "trainer/tier.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/memory_block.h"
#include "ops/parallel.h"
#include "ops/stream_copy.h"

namespace thimble {
namespace {

// Memory has no engine of its own for copies: with kernels on all cores, a copy beside them takes a core from a loop
// whose other threads then wait for it. So all threads copy at once, unless a core is to spare.
class HostTier : public Tier {
 public:
  explicit HostTier(int64_t bytes)
      : Tier("host memory", bytes, NumThreads() < AvailableCores() ? Mode::kBeside : Mode::kAtOnce),
        block_(bytes, true) {}
  ~HostTier() override { Stop(); }
  bool ok() const { return block_.ok(); }

 private:
  absl::Status Write(const void* from, int64_t slot, int64_t bytes) override {
    Copy(block_.data() + slot, from, bytes);
    return absl::OkStatus();
  }
  absl::Status Read(int64_t slot, void* to, int64_t bytes) override {
    Copy(to, block_.data() + slot, bytes);
    return absl::OkStatus();
  }
  void Copy(void* to, const void* from, int64_t bytes) const {
    mode() == Mode::kAtOnce ? ParallelStreamCopy(to, from, bytes) : StreamCopy(to, from, bytes);
  }

  MemoryBlock block_;
};

class DiskTier : public Tier {
 public:
  DiskTier(int file, std::string folder, int64_t bytes)
      : Tier("spill file", bytes, Mode::kBeside), file_(file), folder_(std::move(folder)) {}
  ~DiskTier() override {
    Stop();
    ::close(file_);
  }

 private:
  // A piece may come back short; the rest is asked for again.
  static constexpr int64_t kPiece = int64_t{64} << 20;

  absl::Status Write(const void* from, int64_t slot, int64_t bytes) override {
    const char* data = static_cast<const char*>(from);
    for (int64_t at = 0; at < bytes;) {
      const ssize_t count = ::pwrite(file_, data + at, static_cast<size_t>(std::min(kPiece, bytes - at)), slot + at);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return Failed("writing", count < 0 ? errno : ENOSPC);
      at += count;
    }
    return absl::OkStatus();
  }

  absl::Status Read(int64_t slot, void* to, int64_t bytes) override {
    char* data = static_cast<char*>(to);
    for (int64_t at = 0; at < bytes;) {
      const ssize_t count = ::pread(file_, data + at, static_cast<size_t>(std::min(kPiece, bytes - at)), slot + at);
      if (count < 0 && errno == EINTR) continue;
      if (count <= 0) return Failed("reading", count < 0 ? errno : EIO);
      at += count;
    }
    return absl::OkStatus();
  }

  absl::Status Failed(const char* doing, int error) const {
    return absl::UnavailableError(absl::StrCat(folder_, ": ", doing, " the spill file failed (", std::strerror(error),
                                               "); the run's last checkpoint is intact: free the disk or set "
                                               "memory.spill_folder to another one, then train --resume"));
  }

  int file_;
  std::string folder_;
};

std::string DefaultSpillFolder() {
  const char* given = std::getenv("TMPDIR");
  return given != nullptr && *given != '\0' ? given : "/tmp";
}

// An open file without a name, -1 with errno set.
int OpenUnnamed(const std::string& folder) {
  const int file = ::open(folder.c_str(), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (file >= 0 || (errno != EOPNOTSUPP && errno != EISDIR)) return file;
  // Some file systems have no unnamed files.
  std::string pattern = folder + "/thimble-spill-XXXXXX";
  const int named = ::mkostemp(pattern.data(), O_CLOEXEC);
  if (named >= 0) ::unlink(pattern.c_str());
  return named;
}

}  // namespace

Tier::Ticket Tier::Put(const void* from, int64_t slot, int64_t bytes) {
  return Submit(slot + bytes, bytes, [this, from, slot, bytes] { return Write(from, slot, bytes); });
}

Tier::Ticket Tier::Get(int64_t slot, void* to, int64_t bytes) {
  return Submit(slot + bytes, bytes, [this, to, slot, bytes] { return Read(slot, to, bytes); });
}

Tier::Ticket Tier::Submit(int64_t end, int64_t bytes, std::function<absl::Status()> job) {
  CHECK_LE(end, bytes_) << name_;
  Touch(end);
  moved_ += bytes;
  if (mode_ == Mode::kAtOnce) {
    const absl::Status done = status().ok() ? job() : absl::OkStatus();
    const std::lock_guard<std::mutex> lock(mutex_);
    status_.Update(done);
    return done_ = ++submitted_;
  }
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!worker_.joinable()) worker_ = std::thread([this] { Work(); });
  jobs_.push_back(std::move(job));
  changed_.notify_all();
  return ++submitted_;
}

absl::Status Tier::Wait(Ticket ticket) {
  std::unique_lock<std::mutex> lock(mutex_);
  if (done_ < ticket) {
    const auto begin = std::chrono::steady_clock::now();
    changed_.wait(lock, [&] { return done_ >= ticket; });
    stalled_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }
  return status_;
}

void Tier::ReadNow(int64_t slot, void* to, int64_t bytes) {
  CHECK_LE(slot + bytes, bytes_) << name_;
  moved_ += bytes;
  const absl::Status read = Read(slot, to, bytes);
  if (read.ok()) return;
  std::memset(to, 0, static_cast<size_t>(bytes));
  const std::lock_guard<std::mutex> lock(mutex_);
  status_.Update(read);
}

absl::Status Tier::status() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return status_;
}

void Tier::Work() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
    if (jobs_.empty()) return;
    const std::function<absl::Status()> job = std::move(jobs_.front());
    jobs_.pop_front();
    const bool failed = !status_.ok();
    lock.unlock();
    const absl::Status status = failed ? absl::OkStatus() : job();
    lock.lock();
    if (!failed) status_ = status;
    ++done_;
    changed_.notify_all();
  }
}

void Tier::Stop() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (worker_.joinable()) worker_.join();
}

absl::Status NoAddressSpace(const std::string& what, int64_t bytes) {
  return absl::ResourceExhaustedError(absl::StrCat("the system refuses ", bytes, " bytes of address space for ", what,
                                                   " (", std::strerror(errno),
                                                   "); raise its limit (ulimit -v) or plan for less"));
}

absl::StatusOr<std::unique_ptr<Tier>> MakeHostTier(int64_t bytes) {
  auto tier = std::make_unique<HostTier>(bytes);
  if (!tier->ok()) return NoAddressSpace("the host tier", bytes);
  return tier;
}

absl::StatusOr<std::unique_ptr<Tier>> MakeDiskTier(const std::string& folder, int64_t bytes) {
  const std::string where = folder.empty() ? DefaultSpillFolder() : folder;
  const int file = OpenUnnamed(where);
  if (file < 0) {
    const std::string message = absl::StrCat(where, ": no spill file can be made there (", std::strerror(errno),
                                             "); set memory.spill_folder to a folder that can be written");
    return errno == ENOENT || errno == ENOTDIR ? absl::NotFoundError(message) : absl::PermissionDeniedError(message);
  }
  auto tier = std::make_unique<DiskTier>(file, where, bytes);
  const int error = bytes > 0 ? ::posix_fallocate(file, 0, bytes) : 0;
  if (error != 0) {
    std::error_code unknown;
    const auto space = std::filesystem::space(where, unknown);
    const std::string free = unknown ? std::string("less") : absl::StrCat(space.available);
    return absl::ResourceExhaustedError(absl::StrCat(where, ": the spill file needs ", bytes, " bytes, the disk has ",
                                                     free, " free (", std::strerror(error),
                                                     "); set memory.spill_folder to another disk, or spill less"));
  }
  return tier;
}

}  // namespace thimble
