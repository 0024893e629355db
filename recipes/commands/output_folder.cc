// --out and --max_shard_size.
#include "recipes/commands/output_folder.h"

#include <gflags/gflags.h>

#include <filesystem>

#include "absl/strings/str_cat.h"
#include "recipes/commands/flags.h"
#include "recipes/schema.h"

DEFINE_string(max_shard_size, "5GB", "Largest .safetensors file; larger models are split.");

namespace thimble {

namespace fs = std::filesystem;

absl::StatusOr<std::string> NewFolderFromFlag() {
  std::string out = FLAGS_out;
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  if (out.empty())
    return absl::InvalidArgumentError("--out: missing; where shall the folder go? For example --out=new");
  std::error_code error;
  if (fs::exists(out, error) && !(fs::is_directory(out, error) && fs::is_empty(out, error))) {
    return absl::AlreadyExistsError(absl::StrCat("--out: ", out, " exists; choose another folder or remove this one"));
  }
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
