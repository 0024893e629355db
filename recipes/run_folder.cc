// Making folders, and taking back those that were made.
#include "recipes/run_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = "run.lock";
constexpr const char* kFirstFile = "recipe.yaml.tmp";

// What a run that was killed at its very start may have left counts as nothing.
bool HoldsNothing(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    const fs::path name = entry.path().filename();
    if (name != kFirstFile && name != kLockName) return false;
  }
  return !error;
}

absl::Status CannotMake(const std::string& folder, const std::string& reason) {
  return absl::PermissionDeniedError(
      absl::StrCat("cannot write to the run folder ", folder, ": ", reason, "; choose another output.folder"));
}

absl::Status CheckWritable(const std::string& folder) {
  return ::access(folder.c_str(), W_OK | X_OK) == 0 ? absl::OkStatus() : CannotMake(folder, std::strerror(errno));
}

// The message, with the number that the holder of the lock wrote.
absl::Status HeldBy(int fd, const std::string& folder) {
  char text[32];
  const ssize_t size = ::pread(fd, text, sizeof(text), 0);
  const std::string pid(text, static_cast<size_t>(std::max<ssize_t>(size, 0)));
  const bool number = !pid.empty() && pid.find_first_not_of("0123456789") == std::string::npos;
  return absl::FailedPreconditionError(
      absl::StrCat(folder, ": ", number ? "process " + pid : std::string("another process"),
                   " works in this run folder; wait until it ends, or stop it, or choose another output.folder"));
}

// Whether somebody works there; without a lock file nobody does.
absl::Status CheckFree(const std::string& folder) {
  const int fd = ::open((fs::path(folder) / kLockName).c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return absl::OkStatus();
  const bool held = ::flock(fd, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  const absl::Status status = held ? HeldBy(fd, folder) : absl::OkStatus();
  ::close(fd);
  return status;
}

// Whether `path` still names the open file: its last holder may have removed it in between.
bool IsAt(int fd, const fs::path& path) {
  struct stat open {};
  struct stat named {};
  return ::fstat(fd, &open) == 0 && ::stat(path.c_str(), &named) == 0 && open.st_ino == named.st_ino &&
         open.st_dev == named.st_dev;
}

}  // namespace

absl::Status RunFolder::Lock(const std::string& folder) {
  const fs::path path = fs::path(folder) / kLockName;
  while (true) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return CannotMake(folder, std::strerror(errno));
    const bool locked = ::flock(fd, LOCK_EX | LOCK_NB) == 0;
    const int reason = errno;
    lock_ = fd;
    if (locked && IsAt(fd, path)) break;
    const absl::Status held = HeldBy(fd, folder);
    ::close(fd);
    lock_ = -1;
    if (locked || reason == EINTR) continue;
    if (reason == EWOULDBLOCK) return held;
    warning_ =
        absl::StrCat(folder, " cannot be locked (", std::strerror(reason), "): do not start a second process on it");
    return absl::OkStatus();
  }
  lock_path_ = path;
  const std::string pid = absl::StrCat(::getpid());
  // What is written helps the message of a second process only.
  if (::ftruncate(lock_, 0) != 0 || ::pwrite(lock_, pid.data(), pid.size(), 0) < 0) warning_.clear();
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<RunFolder>> RunFolder::Reopen(const std::string& folder) {
  RETURN_IF_ERROR(CheckWritable(folder));
  std::unique_ptr<RunFolder> run(new RunFolder(/*is_new=*/false));
  RETURN_IF_ERROR(run->Lock(folder));
  return run;
}

absl::StatusOr<std::unique_ptr<RunFolder>> RunFolder::Make(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (fs::exists(status) && !fs::is_directory(status)) return CannotMake(folder, "it is not a folder");
  if (fs::exists(status) && !HoldsNothing(folder)) {
    RETURN_IF_ERROR(CheckFree(folder));
    return absl::AlreadyExistsError(absl::StrCat(folder,
                                                 ": the run folder is not empty; go on with thimble train --resume ",
                                                 folder, ", or choose another output.folder"));
  }
  std::vector<fs::path> missing;
  for (fs::path path = fs::absolute(folder, error); !fs::exists(path, error) && path.has_relative_path();
       path = path.parent_path()) {
    missing.push_back(path);
  }
  std::reverse(missing.begin(), missing.end());
  std::unique_ptr<RunFolder> made(new RunFolder(/*is_new=*/true));
  for (const fs::path& path : missing) {
    if (fs::create_directory(path, error)) made->made_.push_back(path);
    if (error) return CannotMake(folder, error.message());
  }
  RETURN_IF_ERROR(CheckWritable(folder));
  RETURN_IF_ERROR(made->Lock(folder));
  return made;
}

RunFolder::~RunFolder() {
  std::error_code error;
  if (!made_.empty()) fs::remove(made_.back() / kFirstFile, error);
  // While it is held, so that nobody else's is removed.
  if (!lock_path_.empty()) fs::remove(lock_path_, error);
  if (lock_ >= 0) ::close(lock_);
  // Only while empty: what others put there stays.
  for (auto path = made_.rbegin(); path != made_.rend(); ++path) fs::remove(*path, error);
}

}  // namespace thimble
