#include "data/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"

namespace thimble {
absl::Status ErrnoStatus(std::string_view action, const std::string& path) {
  const int error = errno;
  const std::string message = absl::StrCat("cannot ", std::string(action), " ", path, ": ", std::strerror(error));
  if (error == EISDIR) return absl::InvalidArgumentError(absl::StrCat(path, " is a folder, expected a file"));
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

NewFile::~NewFile() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(beside_.c_str());
}

absl::Status NewFile::Create(const std::string& path) {
  CHECK_LT(fd_, 0) << "created twice";
  path_ = path;
  beside_ = path + ".tmp";
  fd_ = ::open(beside_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  return fd_ < 0 ? ErrnoStatus("create", beside_) : absl::OkStatus();
}

absl::Status NewFile::WriteAt(int64_t position, const void* data, int64_t bytes) {
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const ssize_t count = ::pwrite(fd_, next, static_cast<size_t>(bytes), position);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("write", beside_);
    next += count;
    position += count;
    bytes -= count;
  }
  return absl::OkStatus();
}

absl::Status NewFile::Resize(int64_t bytes) {
  return ::ftruncate(fd_, bytes) != 0 ? ErrnoStatus("write", beside_) : absl::OkStatus();
}

absl::Status NewFile::Finish() {
  if (::fsync(fd_) != 0) return ErrnoStatus("write", beside_);
  if (::close(std::exchange(fd_, -1)) != 0 || ::rename(beside_.c_str(), path_.c_str()) != 0) {
    absl::Status status = ErrnoStatus("write", beside_);
    ::unlink(beside_.c_str());
    return status;
  }
  SyncFolderOf(path_);
  return absl::OkStatus();
}

absl::Status WriteFileAtomically(const std::string& path, std::string_view content) {
  NewFile file;
  RETURN_IF_ERROR(file.Create(path));
  RETURN_IF_ERROR(file.WriteAt(0, content.data(), static_cast<int64_t>(content.size())));
  return file.Finish();
}

}  // namespace thimble
