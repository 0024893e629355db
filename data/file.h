// Whole-file helpers with errors that name the file: read, atomic replace (written beside, synced, renamed).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// NotFound, PermissionDenied or Unknown, naming the path and the system's reason.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// A file that replaces `path` as a whole, so that a reader sees the old or the new content, never a part: it is written
// beside, as path.tmp, until Finish. Without a Finish that succeeded path.tmp is removed and `path` is as before.
class NewFile {
 public:
  NewFile() = default;  // of no path
  ~NewFile();
  NewFile(const NewFile&) = delete;
  NewFile& operator=(const NewFile&) = delete;

  absl::Status Create(const std::string& path);
  bool is_open() const { return fd_ >= 0; }
  // All bytes from `position` on, carrying on after short writes and interrupts.
  absl::Status WriteAt(int64_t position, const void* data, int64_t bytes);
  // What is never written of `bytes` is zero.
  absl::Status Resize(int64_t bytes);
  // Syncs, renames path.tmp to path, syncs the folder.
  absl::Status Finish();

 private:
  std::string path_, beside_;
  int fd_ = -1;
};

// Replaces `path` by a NewFile of that content.
absl::Status WriteFileAtomically(const std::string& path, std::string_view content);

// Makes a rename or a new name in the folder of `path` last through a power cut, where the file system can.
void SyncFolderOf(const std::string& path);

// The Status for a failed system call on `path`, from errno: "cannot <action> <path>: <reason>".
absl::Status ErrnoStatus(std::string_view action, const std::string& path);

}  // namespace thimble
