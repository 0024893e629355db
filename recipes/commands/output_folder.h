// Checks that commands share which write a model folder.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// --out without slashes at its end. InvalidArgument when it is missing, AlreadyExists when something lies there.
absl::StatusOr<std::string> NewFolderFromFlag();

// --max_shard_size in bytes.
absl::StatusOr<int64_t> ShardBytesFromFlag();

// Whether the flag stood on the command line.
bool IsGiven(const char* flag);

// Exit code 3 is for memory plans: a full disk (ResourceExhausted from a writer) is a failure while running.
absl::Status WriteFailure(const absl::Status& status);

}  // namespace thimble
