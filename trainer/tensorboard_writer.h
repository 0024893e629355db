// TensorBoard event files of scalars.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace thimble {

// A record: length, masked CRC-32C of the length, payload, masked CRC-32C of the payload, little endian.
// Source: tensorflow/core/lib/io/record_writer.h.
std::string TensorBoardRecord(const std::string& payload);
// The bytes of the first record of a file, of scalars of one step, and of the mark that makes TensorBoard forget what
// earlier files of the folder say about `step` and later ones.
std::string TensorBoardHeader(double wall_time);
std::string TensorBoardScalars(double wall_time, int64_t step,
                               const std::vector<std::pair<std::string, double>>& scalars);
std::string TensorBoardRestart(double wall_time, int64_t step);

// Writes one new event file in a folder. Every call reaches the file at once.
class TensorBoardWriter {
 public:
  // `first_step` > 1: the run was resumed, and earlier files may hold later steps.
  static absl::StatusOr<std::unique_ptr<TensorBoardWriter>> Open(const std::string& folder, int64_t first_step);
  ~TensorBoardWriter();
  TensorBoardWriter(const TensorBoardWriter&) = delete;
  TensorBoardWriter& operator=(const TensorBoardWriter&) = delete;

  absl::Status Write(int64_t step, const std::vector<std::pair<std::string, double>>& scalars);
  const std::string& path() const { return path_; }

 private:
  TensorBoardWriter(std::string path, std::FILE* file) : path_(std::move(path)), file_(file) {}
  absl::Status Append(const std::string& record);

  std::string path_;
  std::FILE* file_;
};

}  // namespace thimble
