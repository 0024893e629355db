// Writer of GGUF files, version 3.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/file.h"
#include "data/gguf_header.h"
#include "ops/view.h"

namespace thimble {

struct GgufTensorSpec {
  std::string name;
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;  // outermost first: [out, in]
  int64_t head_rows = 0;       // as in TensorInfo: rows are given in order and stored in pairs
};

// Values of one key, for entries.
GgufEntry GgufInteger(std::string key, GgufType type, int64_t value);
GgufEntry GgufFloat(std::string key, double value);  // f32
GgufEntry GgufBool(std::string key, bool value);
GgufEntry GgufString(std::string key, std::string value);
GgufEntry GgufStrings(std::string key, std::vector<std::string> values);
GgufEntry GgufIntegers(std::string key, GgufType type, std::vector<int64_t> values);
GgufEntry GgufFloats(std::string key, std::vector<double> values);  // f32

class GgufWriter {
 public:
  // Creates path.tmp, which goes with the writer unless Finish succeeds, and writes metadata and the table.
  // InvalidArgument for a name given twice, one of more than 63 bytes, or rows that are not whole blocks; the system's
  // reason where the file cannot be written.
  static absl::StatusOr<std::unique_ptr<GgufWriter>> Create(const std::string& path,
                                                            const std::vector<GgufEntry>& entries,
                                                            const std::vector<GgufTensorSpec>& tensors);

  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  int64_t file_bytes() const { return file_bytes_; }

  // The next bytes of the declared tensor `name`; never more than it has.
  absl::Status Append(std::string_view name, const void* data, int64_t bytes);
  // The next elements of an F32, BF16, F16 or block tensor, whole blocks, rounded or quantised. InvalidArgument where a
  // block holds a NaN or an infinity.
  absl::Status AppendFloats(std::string_view name, ConstVector values);
  // After all bytes: path.tmp becomes path.
  absl::Status Finish();

 private:
  explicit GgufWriter(const std::string& path) : path_(path) {}
  absl::Status LayOut(const std::vector<GgufTensorSpec>& tensors);

  std::string path_;
  NewFile file_;
  int64_t data_begin_ = 0;
  int64_t file_bytes_ = 0;
  std::vector<TensorInfo> tensors_;
  std::vector<int64_t> written_;  // bytes of each tensor
  absl::flat_hash_map<std::string, size_t> index_;
};

}  // namespace thimble
