// HDF5 files of named arrays, texts and numbers: written whole and atomically, every byte covered by a checksum.
// HDF5 lays the file out and describes it (any HDF5 viewer reads it); the bytes of the arrays are written and read
// here, so that errors of the disk are reported in full. The layout is described in hdf5_file.cc.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"

namespace thimble {

enum class Hdf5Type : uint8_t { kF32, kF64, kI32, kI64, kU8, kU16, kText };

// Bytes of one element (1 for text).
int64_t Hdf5TypeBytes(Hdf5Type type);
const char* Hdf5TypeName(Hdf5Type type);

// Collects entries, then writes them all in Commit. Names may hold '/' (groups); a name used twice is a CHECK.
class Hdf5Writer {
 public:
  // Fills `out` with the array's bytes from `first_byte` on; called in order with pieces of at most 1 MiB.
  using Source = std::function<absl::Status(int64_t first_byte, absl::Span<char> out)>;

  // 1-D or 2-D, row-major, any extent may be 0. `data` is read in Commit and must live until then.
  void AddArray(std::string name, Hdf5Type type, std::vector<int64_t> shape, const void* data);
  void AddArray(std::string name, Hdf5Type type, std::vector<int64_t> shape, Source source);
  // Any bytes; stored as a scalar UTF-8 string where the text has no NUL, else as u8 (either way Text reads it back).
  void AddText(std::string name, std::string text);
  void AddInt(std::string name, int64_t value);
  void AddFloat(std::string name, double value);

  // Writes `path`.tmp (or `beside`, in the same folder), syncs, renames, syncs the folder. On any error (disk full, a
  // source's error) `path` is as before and nothing is left behind. Can be called again with another path.
  absl::Status Commit(const std::string& path) const { return Commit(path, path + ".tmp"); }
  absl::Status Commit(const std::string& path, const std::string& beside) const;

 private:
  struct Entry {
    std::string name;
    Hdf5Type type;
    std::vector<int64_t> shape;
    Source source;
  };
  absl::Status WriteFile(int layout_fd, const std::vector<int64_t>& offsets, int fd, const std::string& path) const;

  std::vector<Entry> entries_;
};

// A file written by Hdf5Writer. Open verifies the checksum of the whole file before HDF5 sees a byte of it, so a file
// cut short or changed anywhere is DataLoss. Copies are not allowed; reading is const and safe from several threads.
class Hdf5Reader {
 public:
  static absl::StatusOr<Hdf5Reader> Open(const std::string& path);
  Hdf5Reader(Hdf5Reader&& other) noexcept;
  Hdf5Reader& operator=(Hdf5Reader&& other) noexcept;
  ~Hdf5Reader();

  struct Entry {
    Hdf5Type type;
    std::vector<int64_t> shape;
    int64_t offset;  // in the file
    int64_t bytes;
  };
  const std::string& path() const { return path_; }
  // Sorted by name.
  const std::map<std::string, Entry>& entries() const { return entries_; }
  bool Has(const std::string& name) const { return entries_.count(name) > 0; }
  // The entry, or DataLoss that names file, entry and what was expected.
  absl::StatusOr<const Entry*> Find(const std::string& name, Hdf5Type type) const;

  // Whole array; type and shape must be as stored, else DataLoss with expected and found.
  absl::Status Read(const std::string& name, Hdf5Type type, const std::vector<int64_t>& shape, void* out) const;
  // `count` elements from element `first`, counted row-major.
  absl::Status ReadRange(const std::string& name, Hdf5Type type, int64_t first, int64_t count, void* out) const;
  absl::StatusOr<std::string> Text(const std::string& name) const;
  absl::StatusOr<int64_t> Int(const std::string& name) const;
  absl::StatusOr<double> Float(const std::string& name) const;

 private:
  Hdf5Reader() = default;
  absl::Status ReadBytes(const Entry& entry, int64_t first_byte, int64_t bytes, void* out) const;

  std::string path_;
  int fd_ = -1;
  int64_t file_bytes_ = 0;
  std::map<std::string, Entry> entries_;
};

}  // namespace thimble
