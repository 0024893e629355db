// --out and --max_shard_size.
#include "recipes/commands/output_folder.h"

#include <gflags/gflags.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "recipes/commands/flags.h"
#include "recipes/schema.h"

DEFINE_string(max_shard_size, "5GB", "Largest .safetensors file; larger models are split.");

namespace thimble {

namespace fs = std::filesystem;

namespace {

// Whether something can be made below the nearest folder that is there: told before the work, not after it.
absl::Status CheckPlace(const std::string& out) {
  std::error_code error;
  fs::path there = fs::absolute(out, error);
  while (there.has_relative_path() && !fs::exists(there, error)) there = there.parent_path();
  const bool folder = fs::is_directory(there, error);
  if (folder && ::access(there.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
  return absl::PermissionDeniedError(absl::StrCat(
      "--out: cannot make ", out, ": ", there.string(),
      folder ? absl::StrCat(": ", std::strerror(errno)) : std::string(" is not a folder"), "; choose another place"));
}

}  // namespace

absl::StatusOr<std::string> NewFolderFromFlag() {
  std::string out = FLAGS_out;
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  if (out.empty())
    return absl::InvalidArgumentError("--out: missing; where shall the folder go? For example --out=new");
  std::error_code error;
  if (fs::exists(out, error) && !(fs::is_directory(out, error) && fs::is_empty(out, error))) {
    return absl::AlreadyExistsError(absl::StrCat("--out: ", out, " exists; choose another folder or remove this one"));
  }
  RETURN_IF_ERROR(CheckPlace(out));
  return out;
}

absl::StatusOr<int64_t> ShardBytesFromFlag() {
  int64_t bytes = 0;
  if (!ParseBytes(FLAGS_max_shard_size, &bytes) || bytes < 1) {
    return absl::InvalidArgumentError(absl::StrCat("--max_shard_size: found '", FLAGS_max_shard_size,
                                                   "', expected a number of bytes such as 5GB, 500MiB or 1000000"));
  }
  return bytes;
}

bool IsGiven(const char* flag) { return !gflags::GetCommandLineFlagInfoOrDie(flag).is_default; }

absl::Status WriteFailure(const absl::Status& status) {
  if (status.code() != absl::StatusCode::kResourceExhausted) return status;
  return absl::AbortedError(status.message());
}

}  // namespace thimble
