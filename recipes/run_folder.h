// The folder of a new run. It is made before the work that may take minutes, so that a wrong place is refused at once,
// and taken back when the run ends before it has begun.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

class NewRunFolder {
 public:
  // Makes the folder and its parents. AlreadyExists when it holds anything, PermissionDenied when it cannot be made or
  // written to; both leave nothing behind.
  static absl::StatusOr<std::unique_ptr<NewRunFolder>> Make(const std::string& folder);
  // Removes what Make made, unless Keep was called.
  ~NewRunFolder();
  NewRunFolder(const NewRunFolder&) = delete;
  NewRunFolder& operator=(const NewRunFolder&) = delete;

  void Keep() { made_.clear(); }

 private:
  NewRunFolder() = default;
  std::vector<std::filesystem::path> made_;  // parents first
};

// PermissionDenied when nothing can be written into the folder.
absl::Status CheckWritable(const std::string& folder);

}  // namespace thimble
