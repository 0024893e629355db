// Whole-file helpers with errors that name the file: read, atomic replace (written beside, synced, renamed).
#pragma once

#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// NotFound, PermissionDenied or Unknown, naming the path and the system's reason.
absl::StatusOr<std::string> ReadFile(const std::string& path);

// Replaces `path` so that a reader sees the old or the new content, never a part: writes path.tmp, syncs, renames,
// syncs the folder. On an error path.tmp is removed and `path` is as before.
absl::Status WriteFileAtomically(const std::string& path, std::string_view content);

// Makes a rename or a new name in the folder of `path` last through a power cut, where the file system can.
void SyncFolderOf(const std::string& path);

// The Status for a failed system call on `path`, from errno: "cannot <action> <path>: <reason>".
absl::Status ErrnoStatus(std::string_view action, const std::string& path);

}  // namespace thimble
