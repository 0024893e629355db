// Reader of one file of tensors, safetensors or GGUF: a table of named tensors, checked as a whole when opened, and
// reads into the caller's memory. Nothing is mapped, so what is not asked for takes no memory.
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
#include "data/tensor_dtype.h"

namespace thimble {

struct TensorInfo {
  std::string name;
  TensorDType dtype = TensorDType::kF32;
  std::vector<int64_t> shape;
  int64_t elements = 0;
  int64_t begin = 0;  // byte offset in the data part of the file
  int64_t bytes = 0;
  // Of q_proj and k_proj in GGUF files of the llama architecture: within each head of this many rows, row 2i + s of the
  // file is row s * head_rows / 2 + i of the tensor. 0: rows lie as they are.
  int64_t head_rows = 0;
  // Where byte `offset` of the tensor stands among its bytes in the file, and how many from it on stand together.
  int64_t StoredOffset(int64_t offset) const;
  int64_t BytesToEndOfRow(int64_t offset) const;
};

// "[4, 8]"
std::string ShapeText(const std::vector<int64_t>& shape);

// All reads may run at the same time on several threads.
class TensorFile {
 public:
  // Accepts exactly what the safetensors library accepts. NotFound, PermissionDenied, DataLoss (cut short) or
  // InvalidArgument, naming the file and, where there is one, the tensor.
  static absl::StatusOr<std::unique_ptr<TensorFile>> Open(const std::string& path);
  // A file whose table was read elsewhere (data/gguf_header.h); it lies from data_begin on, and its tensors are in it.
  static absl::StatusOr<std::unique_ptr<TensorFile>> OpenTable(const std::string& path, int64_t data_begin,
                                                               std::vector<TensorInfo> tensors);
  ~TensorFile();
  TensorFile(const TensorFile&) = delete;
  TensorFile& operator=(const TensorFile&) = delete;

  const std::string& path() const { return path_; }
  // In the order of their data.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  // Null when there is none of this name. Valid as long as this object.
  const TensorInfo* Find(std::string_view name) const;
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  // Bytes [offset, offset + bytes) of a tensor of this file, which must have them.
  absl::Status ReadBytes(const TensorInfo& tensor, int64_t offset, int64_t bytes, void* out) const;
  // Elements [first, first + count) of a tensor of this file as f32. InvalidArgument unless it is F32, BF16, F16 or of
  // a block type.
  absl::Status ReadFloats(const TensorInfo& tensor, int64_t first, int64_t count, float* out) const;

 private:
  TensorFile(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status ReadHeader();
  absl::Status ReadAt(int64_t position, int64_t bytes, void* out) const;

  std::string path_;
  int fd_;
  int64_t data_begin_ = 0;
  std::vector<TensorInfo> tensors_;
  absl::flat_hash_map<std::string, size_t> index_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace thimble
