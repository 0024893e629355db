// Bytes of a file from front to back, plain or zstd (recognised by content), and lines of it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

class ByteSource {
 public:
  virtual ~ByteSource() = default;
  // Up to `size` bytes; 0 at the end. A zstd file that ends early or is damaged is DataLoss.
  virtual absl::StatusOr<size_t> Read(char* out, size_t size) = 0;

  // Opens `path`; a file that starts with the zstd magic number is decompressed, whatever its name.
  static absl::StatusOr<std::unique_ptr<ByteSource>> Open(const std::string& path);
};

// Buffers a source; knows the line (from 1) of the next byte.
class LineReader {
 public:
  explicit LineReader(std::unique_ptr<ByteSource> source) : source_(std::move(source)) {}

  // The next byte without taking it, or -1 at the end.
  absl::StatusOr<int> Peek();
  // Appends the next line with its '\n', if it has one. False at the end of the file.
  absl::StatusOr<bool> AppendLine(std::string* out);
  // Appends one JSON value (from its first to its last byte, by brackets and quotes alone). False: the file ended
  // first.
  absl::StatusOr<bool> AppendJsonValue(std::string* out);
  // At the start of a file: skips the UTF-8 byte order mark, if there is one.
  absl::Status SkipByteOrderMark();
  // Skips JSON white space.
  absl::Status SkipSpace();
  void Take();
  int64_t line() const { return line_; }

 private:
  absl::StatusOr<bool> Fill();

  std::unique_ptr<ByteSource> source_;
  std::string buffer_;
  size_t next_ = 0;
  int64_t line_ = 1;
};

// Index of the first byte that is not valid UTF-8 (overlong, surrogate and above U+10FFFF included), or -1.
int64_t FindInvalidUtf8(std::string_view text);

}  // namespace thimble
