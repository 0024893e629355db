// The door to HDF5: lays files of contiguous datasets out, and finds the place of every array in such a file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/hdf5_file.h"

namespace thimble {

// Bytes at the start of a file that HDF5 leaves to the application.
inline constexpr int64_t kHdf5UserBlockBytes = 512;

struct Hdf5LayoutEntry {
  std::string name;
  Hdf5Type type = Hdf5Type::kU8;
  std::vector<int64_t> shape;  // kText: {bytes}
  int64_t offset = 0;          // in the file; 0 when there are no bytes
};

// Product of the extents, or -1 when one is negative or above 2^40, or the product above 2^58.
int64_t Hdf5Elements(const std::vector<int64_t>& shape);

// Creates or overwrites `path` with space for all entries (contents undefined) and sets their offsets.
absl::Status CreateHdf5Layout(const std::string& path, std::vector<Hdf5LayoutEntry>* entries);

// The entries of a file, in the order of their names; every array lies within `file_bytes`. DataLoss when HDF5 cannot
// read the file or it holds something else than CreateHdf5Layout makes.
absl::StatusOr<std::vector<Hdf5LayoutEntry>> ReadHdf5Layout(const std::string& path, int64_t file_bytes);

}  // namespace thimble
