// Writer of one safetensors file: the tensors are declared first, then their bytes arrive in pieces, in any order of
// tensors. The layout is byte for byte the safetensors library's.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/file.h"
#include "data/tensor_file.h"
#include "ops/view.h"

namespace thimble {

struct TensorSpec {
  std::string name;
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;
};

class SafetensorsWriter {
 public:
  // Creates path.tmp, which goes with the writer unless Finish succeeds, and writes the header. InvalidArgument for a
  // name given twice or for sub-byte elements that do not fill whole bytes; the system's reason where the file cannot
  // be written (a full disk is ResourceExhausted).
  static absl::StatusOr<std::unique_ptr<SafetensorsWriter>> Create(
      const std::string& path, const std::vector<TensorSpec>& tensors,
      const std::map<std::string, std::string>& metadata = {{"format", "pt"}});

  // In file order: larger element types first, then by name. Pushing in this order writes the file front to back.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // Bytes of all tensors, without the header.
  int64_t data_bytes() const { return data_bytes_; }

  // The next bytes of the declared tensor `name`; never more than it has.
  absl::Status Append(std::string_view name, const void* data, int64_t bytes);
  // The next elements of an F32, BF16 or F16 tensor, rounded to nearest even.
  absl::Status AppendFloats(std::string_view name, ConstVector values);
  // After all bytes: path.tmp becomes path.
  absl::Status Finish();

 private:
  SafetensorsWriter() = default;

  NewFile file_;
  int64_t data_begin_ = 0;
  int64_t data_bytes_ = 0;
  std::vector<TensorInfo> tensors_;
  std::vector<int64_t> written_;  // bytes of each tensor
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace thimble
