// Making folders, and taking back those that were made.
#include "recipes/run_folder.h"

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

// What a run that was killed at its very start may have left counts as nothing.
bool HoldsNothing(const fs::path& folder) {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error)) {
    if (entry.path().filename() != "recipe.yaml.tmp") return false;
  }
  return !error;
}

absl::Status CannotMake(const std::string& folder, const std::string& reason) {
  return absl::PermissionDeniedError(
      absl::StrCat("cannot write to the run folder ", folder, ": ", reason, "; choose another output.folder"));
}

}  // namespace

absl::Status CheckWritable(const std::string& folder) {
  return ::access(folder.c_str(), W_OK | X_OK) == 0 ? absl::OkStatus() : CannotMake(folder, std::strerror(errno));
}

absl::StatusOr<std::unique_ptr<NewRunFolder>> NewRunFolder::Make(const std::string& folder) {
  std::error_code error;
  const fs::file_status status = fs::status(folder, error);
  if (fs::exists(status) && !fs::is_directory(status)) return CannotMake(folder, "it is not a folder");
  if (fs::exists(status) && !HoldsNothing(folder)) {
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
  std::unique_ptr<NewRunFolder> made(new NewRunFolder());
  for (const fs::path& path : missing) {
    if (fs::create_directory(path, error)) made->made_.push_back(path);
    if (error) return CannotMake(folder, error.message());
  }
  RETURN_IF_ERROR(CheckWritable(folder));
  return made;
}

NewRunFolder::~NewRunFolder() {
  std::error_code error;
  if (!made_.empty()) fs::remove(made_.back() / "recipe.yaml.tmp", error);
  // Only while empty: what others put there stays.
  for (auto path = made_.rbegin(); path != made_.rend(); ++path) fs::remove(*path, error);
}

}  // namespace thimble
