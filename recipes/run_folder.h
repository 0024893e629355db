// The folder of a run, locked against a second process. A new one is made before the work that may take minutes, so
// that a wrong place is refused at once, and taken back when the run ends before it has begun.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

class RunFolder {
 public:
  // Makes the folder and its parents. AlreadyExists when it holds anything, PermissionDenied when it cannot be made or
  // written to, FailedPrecondition while another process has it; all leave nothing behind.
  static absl::StatusOr<std::unique_ptr<RunFolder>> Make(const std::string& folder);
  // The folder of a run that goes on. PermissionDenied and FailedPrecondition as above.
  static absl::StatusOr<std::unique_ptr<RunFolder>> Reopen(const std::string& folder);
  // Removes what Make made, unless Keep was called, and the lock.
  ~RunFolder();
  RunFolder(const RunFolder&) = delete;
  RunFolder& operator=(const RunFolder&) = delete;

  bool is_new() const { return is_new_; }
  void Keep() { made_.clear(); }
  // Not empty: the file system has no locks, so that nothing keeps a second process away.
  const std::string& warning() const { return warning_; }

 private:
  explicit RunFolder(bool is_new) : is_new_(is_new) {}
  absl::Status Lock(const std::string& folder);

  bool is_new_;
  std::vector<std::filesystem::path> made_;  // parents first
  std::filesystem::path lock_path_;
  int lock_ = -1;  // held by flock, so that it ends with the process, however that ends
  std::string warning_;
};

}  // namespace thimble
