#include "data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
namespace {

// Writes all of `content`, carrying on after short writes and interrupts.
bool WriteAll(int fd, std::string_view content) {
  while (!content.empty()) {
    const ssize_t written = ::write(fd, content.data(), content.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    content.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

absl::Status ErrnoStatus(std::string_view action, const std::string& path) {
  const int error = errno;
  const std::string message = absl::StrCat("cannot ", std::string(action), " ", path, ": ", std::strerror(error));
  if (error == ENOENT || error == ENOTDIR) return absl::NotFoundError(message);
  if (error == EACCES || error == EPERM || error == EROFS) return absl::PermissionDeniedError(message);
  return absl::UnknownError(message);
}

void SyncFolderOf(const std::string& path) {
  const std::string folder = std::filesystem::path(path).parent_path().string();
  const int fd = ::open(folder.empty() ? "." : folder.c_str(), O_RDONLY | O_DIRECTORY);
  if (fd < 0) return;
  ::fsync(fd);
  ::close(fd);
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  std::string content;
  struct stat info;
  if (::fstat(fd, &info) == 0 && info.st_size > 0) content.reserve(static_cast<size_t>(info.st_size));
  char buffer[1 << 16];
  while (true) {
    const ssize_t count = ::read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      absl::Status status = ErrnoStatus("read", path);
      ::close(fd);
      return status;
    }
    if (count == 0) break;
    content.append(buffer, static_cast<size_t>(count));
  }
  ::close(fd);
  return content;
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view content) {
  const std::string beside = path + ".tmp";
  const int fd = ::open(beside.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return ErrnoStatus("create", beside);
  bool ok = WriteAll(fd, content) && ::fsync(fd) == 0;
  absl::Status status = ok ? absl::OkStatus() : ErrnoStatus("write", beside);
  if (::close(fd) != 0 && ok) status = ErrnoStatus("write", beside);
  if (status.ok() && ::rename(beside.c_str(), path.c_str()) != 0) status = ErrnoStatus("rename", beside);
  if (!status.ok()) {
    ::unlink(beside.c_str());
    return status;
  }
  SyncFolderOf(path);
  return absl::OkStatus();
}

}  // namespace thimble
