// File layout: a user block of 512 bytes (kept by HDF5 for the application), then the HDF5 file proper. The user block
// holds one line, "thimble-hdf5 1 bytes=<file size> crc32c=<of all bytes after the block>\n", and zeros. Every array is
// a contiguous dataset, allocated when the file is laid out, so that its bytes have one place in the file.
#include "data/hdf5_file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "data/checksum.h"
#include "data/file.h"
#include "data/hdf5_layout.h"
#include "ops/check.h"

namespace thimble {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are stored as they lie in memory");

constexpr int64_t kUserBlockBytes = kHdf5UserBlockBytes;
constexpr int64_t kPieceBytes = int64_t{1} << 20;
// What HDF5 needs beside the arrays: about 600 bytes an entry and its groups, rounded up generously.
constexpr int64_t kLayoutBytesPerEntry = 4096;

struct TypeRow {
  const char* name;
  int64_t bytes;
};
constexpr TypeRow kTypes[] = {{"f32", 4}, {"f64", 8}, {"i32", 4}, {"i64", 8}, {"u8", 1}, {"u16", 2}, {"text", 1}};

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

std::string UserBlock(int64_t file_bytes, uint32_t crc) {
  std::string block = absl::StrFormat("thimble-hdf5 1 bytes=%d crc32c=%08x\n", file_bytes, crc);
  block.resize(kUserBlockBytes, '\0');
  return block;
}

absl::Status ReadAt(int fd, const std::string& path, int64_t offset, int64_t bytes, char* out) {
  while (bytes > 0) {
    const ssize_t count = ::pread(fd, out, static_cast<size_t>(std::min<int64_t>(bytes, 1 << 30)), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("read", path);
    if (count == 0) return absl::DataLossError(absl::StrCat(path, " ends at byte ", offset, ", while being read"));
    out += count;
    offset += count;
    bytes -= count;
  }
  return absl::OkStatus();
}

absl::Status WriteAt(int fd, const std::string& path, int64_t offset, absl::Span<const char> data) {
  while (!data.empty()) {
    const ssize_t count = ::pwrite(fd, data.data(), data.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("write", path);
    offset += count;
    data.remove_prefix(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

// CRC-32C of the bytes after the user block.
absl::StatusOr<uint32_t> BodyCrc(int fd, const std::string& path, int64_t file_bytes) {
  std::vector<char> buffer(static_cast<size_t>(std::min(kPieceBytes, file_bytes)));
  uint32_t crc = 0;
  for (int64_t offset = kUserBlockBytes; offset < file_bytes; offset += kPieceBytes) {
    const int64_t count = std::min(kPieceBytes, file_bytes - offset);
    RETURN_IF_ERROR(ReadAt(fd, path, offset, count, buffer.data()));
    crc = Crc32c(buffer.data(), static_cast<size_t>(count), crc);
  }
  return crc;
}

absl::StatusOr<int64_t> FileBytes(int fd, const std::string& path) {
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus("examine", path);
  if (!S_ISREG(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is not a regular file"));
  return static_cast<int64_t>(info.st_size);
}

// A failed write leaves HDF5 1.10 in a state in which its clean-up at exit crashes, so HDF5 never writes to a disk: it
// lays the file out in memory, where the arrays are holes that take no space. The limit on file sizes holds there too.
absl::StatusOr<int> LayOutInMemory(const std::string& path, int64_t most_bytes, std::vector<Hdf5LayoutEntry>* layout) {
  rlimit limit;
  if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur < static_cast<rlim_t>(most_bytes)) {
    errno = EFBIG;
    return ErrnoStatus("write", path);
  }
  std::string name = "/dev/shm/thimble-layout-XXXXXX";
  int fd = ::mkostemp(name.data(), O_CLOEXEC);
  if (fd < 0) {  // no such folder: beside the file, with the risk above
    name = path + "-layout-XXXXXX";
    fd = ::mkostemp(name.data(), O_CLOEXEC);
  }
  if (fd < 0) return ErrnoStatus("create", name);
  absl::Status status = CreateHdf5Layout(name, layout);
  ::unlink(name.c_str());
  if (status.ok()) return fd;
  ::close(fd);
  return status;
}

// Learns at once whether the disk has room for the file.
absl::Status ReserveSpace(int fd, const std::string& path, int64_t bytes) {
  // A file system that cannot reserve space says so with another errno; the writes then tell.
  if (::fallocate(fd, FALLOC_FL_KEEP_SIZE, 0, bytes) != 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)) {
    return ErrnoStatus(absl::StrCat("reserve ", bytes, " bytes for").c_str(), path);
  }
  if (::ftruncate(fd, bytes) != 0) return ErrnoStatus("extend", path);
  return absl::OkStatus();
}

// Copies what HDF5 wrote, leaving out the holes where the arrays go.
absl::Status CopyLayout(int layout_fd, int fd, const std::string& path) {
  std::vector<char> buffer(1 << 16);
  off_t begin = 0;
  while ((begin = ::lseek(layout_fd, begin, SEEK_DATA)) >= 0) {
    const off_t end = ::lseek(layout_fd, begin, SEEK_HOLE);
    while (begin < end) {
      const int64_t count = std::min<int64_t>(end - begin, static_cast<int64_t>(buffer.size()));
      RETURN_IF_ERROR(ReadAt(layout_fd, path, begin, count, buffer.data()));
      RETURN_IF_ERROR(WriteAt(fd, path, begin, absl::MakeConstSpan(buffer.data(), static_cast<size_t>(count))));
      begin += count;
    }
  }
  return absl::OkStatus();
}

}  // namespace

int64_t Hdf5TypeBytes(Hdf5Type type) { return kTypes[static_cast<int>(type)].bytes; }
const char* Hdf5TypeName(Hdf5Type type) { return kTypes[static_cast<int>(type)].name; }

void Hdf5Writer::AddArray(std::string name, Hdf5Type type, std::vector<int64_t> shape, Source source) {
  CHECK(!name.empty()) << "an entry without a name";
  CHECK_GE(Hdf5Elements(shape), 0);
  for (const Entry& entry : entries_) CHECK_NE(entry.name, name);
  entries_.push_back({std::move(name), type, std::move(shape), std::move(source)});
}

void Hdf5Writer::AddArray(std::string name, Hdf5Type type, std::vector<int64_t> shape, const void* data) {
  AddArray(std::move(name), type, std::move(shape), [data](int64_t first_byte, absl::Span<char> out) {
    std::memcpy(out.data(), static_cast<const char*>(data) + first_byte, out.size());
    return absl::OkStatus();
  });
}

void Hdf5Writer::AddText(std::string name, std::string text) {
  // HDF5 pads strings with NUL and knows no empty ones; such texts are kept as bytes.
  const bool as_bytes = text.empty() || text.find('\0') != std::string::npos;
  const auto size = static_cast<int64_t>(text.size());
  AddArray(std::move(name), as_bytes ? Hdf5Type::kU8 : Hdf5Type::kText, {size},
           [text = std::move(text)](int64_t first_byte, absl::Span<char> out) {
             std::memcpy(out.data(), text.data() + first_byte, out.size());
             return absl::OkStatus();
           });
}

void Hdf5Writer::AddInt(std::string name, int64_t value) {
  AddArray(std::move(name), Hdf5Type::kI64, {}, [value](int64_t, absl::Span<char> out) {
    std::memcpy(out.data(), &value, sizeof(value));
    return absl::OkStatus();
  });
}

void Hdf5Writer::AddFloat(std::string name, double value) {
  AddArray(std::move(name), Hdf5Type::kF64, {}, [value](int64_t, absl::Span<char> out) {
    std::memcpy(out.data(), &value, sizeof(value));
    return absl::OkStatus();
  });
}

absl::Status Hdf5Writer::WriteFile(int layout_fd, const std::vector<int64_t>& offsets, int fd,
                                   const std::string& path) const {
  ASSIGN_OR_RETURN(const int64_t file_bytes, FileBytes(layout_fd, path));
  RETURN_IF_ERROR(ReserveSpace(fd, path, file_bytes));
  RETURN_IF_ERROR(CopyLayout(layout_fd, fd, path));
  std::vector<char> buffer(kPieceBytes);
  for (size_t i = 0; i < entries_.size(); ++i) {
    const int64_t bytes = Hdf5Elements(entries_[i].shape) * Hdf5TypeBytes(entries_[i].type);
    for (int64_t first = 0; first < bytes; first += kPieceBytes) {
      const auto count = static_cast<size_t>(std::min(kPieceBytes, bytes - first));
      RETURN_IF_ERROR(entries_[i].source(first, absl::MakeSpan(buffer.data(), count)));
      RETURN_IF_ERROR(WriteAt(fd, path, offsets[i] + first, absl::MakeConstSpan(buffer.data(), count)));
    }
  }
  ASSIGN_OR_RETURN(const uint32_t crc, BodyCrc(fd, path, file_bytes));
  const std::string block = UserBlock(file_bytes, crc);
  RETURN_IF_ERROR(WriteAt(fd, path, 0, absl::MakeConstSpan(block.data(), block.size())));
  if (::fsync(fd) != 0) return ErrnoStatus("write", path);
  return absl::OkStatus();
}

absl::Status Hdf5Writer::Commit(const std::string& path, const std::string& beside) const {
  int64_t most_bytes = kUserBlockBytes + kLayoutBytesPerEntry;
  std::vector<Hdf5LayoutEntry> layout;
  for (const Entry& entry : entries_) {
    most_bytes += Hdf5Elements(entry.shape) * Hdf5TypeBytes(entry.type) + kLayoutBytesPerEntry;
    layout.push_back({entry.name, entry.type, entry.shape, 0});
  }
  ASSIGN_OR_RETURN(const int layout_fd, LayOutInMemory(path, most_bytes, &layout));
  std::vector<int64_t> offsets;
  for (const Hdf5LayoutEntry& entry : layout) offsets.push_back(entry.offset);

  const int fd = ::open(beside.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) {
    const absl::Status status = ErrnoStatus("create", beside);
    ::close(layout_fd);
    return status;
  }
  absl::Status status = WriteFile(layout_fd, offsets, fd, beside);
  ::close(layout_fd);
  if (::close(fd) != 0 && status.ok()) status = ErrnoStatus("write", beside);
  if (status.ok() && ::rename(beside.c_str(), path.c_str()) != 0) status = ErrnoStatus("rename", beside);
  if (!status.ok()) {
    ::unlink(beside.c_str());
    return status;
  }
  SyncFolderOf(path);
  return absl::OkStatus();
}

Hdf5Reader::Hdf5Reader(Hdf5Reader&& other) noexcept { *this = std::move(other); }

Hdf5Reader& Hdf5Reader::operator=(Hdf5Reader&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  std::swap(file_bytes_, other.file_bytes_);
  std::swap(entries_, other.entries_);
  return *this;
}

Hdf5Reader::~Hdf5Reader() {
  if (fd_ >= 0) ::close(fd_);
}

absl::StatusOr<Hdf5Reader> Hdf5Reader::Open(const std::string& path) {
  Hdf5Reader reader;
  reader.path_ = path;
  reader.fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (reader.fd_ < 0) return ErrnoStatus("open", path);
  ASSIGN_OR_RETURN(reader.file_bytes_, FileBytes(reader.fd_, path));
  std::string block(kUserBlockBytes, '\0');
  if (reader.file_bytes_ < kUserBlockBytes) {
    return absl::DataLossError(
        absl::StrCat(path, " is cut short: ", reader.file_bytes_, " bytes, expected more than ", kUserBlockBytes));
  }
  RETURN_IF_ERROR(ReadAt(reader.fd_, path, 0, kUserBlockBytes, block.data()));
  long long stated_bytes = 0;
  unsigned stated_crc = 0;
  if (std::sscanf(block.c_str(), "thimble-hdf5 1 bytes=%19lld crc32c=%8x", &stated_bytes, &stated_crc) != 2) {
    return absl::DataLossError(absl::StrCat(path,
                                            " does not start with the line 'thimble-hdf5 1 bytes=... crc32c=...': "
                                            "not written by Thimble, by another version of it, or damaged"));
  }
  if (stated_bytes != reader.file_bytes_) {
    return absl::DataLossError(
        absl::StrCat(path, " is cut short or damaged: expected ", stated_bytes, " bytes, found ", reader.file_bytes_));
  }
  ASSIGN_OR_RETURN(const uint32_t crc, BodyCrc(reader.fd_, path, reader.file_bytes_));
  if (block != UserBlock(reader.file_bytes_, crc)) {
    return absl::DataLossError(
        absl::StrFormat("%s is damaged: expected CRC-32C %08x, found %08x", path, stated_crc, crc));
  }
  ASSIGN_OR_RETURN(const std::vector<Hdf5LayoutEntry> layout, ReadHdf5Layout(path, reader.file_bytes_));
  for (const Hdf5LayoutEntry& entry : layout) {
    const int64_t bytes = Hdf5Elements(entry.shape) * Hdf5TypeBytes(entry.type);
    reader.entries_[entry.name] = {entry.type, entry.shape, entry.offset, bytes};
  }
  return reader;
}

absl::StatusOr<const Hdf5Reader::Entry*> Hdf5Reader::Find(const std::string& name, Hdf5Type type) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) {
    return absl::DataLossError(absl::StrCat(path_, ": no entry '", name, "' (expected ", Hdf5TypeName(type), ")"));
  }
  if (found->second.type != type) {
    return absl::DataLossError(absl::StrCat(path_, ": '", name, "': expected ", Hdf5TypeName(type), ", found ",
                                            Hdf5TypeName(found->second.type)));
  }
  return &found->second;
}

absl::Status Hdf5Reader::ReadBytes(const Entry& entry, int64_t first_byte, int64_t bytes, void* out) const {
  return ReadAt(fd_, path_, entry.offset + first_byte, bytes, static_cast<char*>(out));
}

absl::Status Hdf5Reader::Read(const std::string& name, Hdf5Type type, const std::vector<int64_t>& shape,
                              void* out) const {
  ASSIGN_OR_RETURN(const Entry* const entry, Find(name, type));
  if (entry->shape != shape) {
    return absl::DataLossError(
        absl::StrCat(path_, ": '", name, "': expected shape ", ShapeText(shape), ", found ", ShapeText(entry->shape)));
  }
  return ReadBytes(*entry, 0, entry->bytes, out);
}

absl::Status Hdf5Reader::ReadRange(const std::string& name, Hdf5Type type, int64_t first, int64_t count,
                                   void* out) const {
  ASSIGN_OR_RETURN(const Entry* const entry, Find(name, type));
  const int64_t element_bytes = Hdf5TypeBytes(type);
  const int64_t elements = entry->bytes / element_bytes;
  if (first < 0 || count < 0 || first > elements || count > elements - first) {
    return absl::DataLossError(
        absl::StrCat(path_, ": '", name, "' has ", elements, " elements; ", count, " are wanted from element ", first));
  }
  return ReadBytes(*entry, first * element_bytes, count * element_bytes, out);
}

absl::StatusOr<std::string> Hdf5Reader::Text(const std::string& name) const {
  const bool as_bytes = Has(name) && entries_.at(name).type == Hdf5Type::kU8 && entries_.at(name).shape.size() == 1;
  ASSIGN_OR_RETURN(const Entry* const entry, Find(name, as_bytes ? Hdf5Type::kU8 : Hdf5Type::kText));
  std::string text(static_cast<size_t>(entry->bytes), '\0');
  RETURN_IF_ERROR(ReadBytes(*entry, 0, entry->bytes, text.data()));
  return text;
}

absl::StatusOr<int64_t> Hdf5Reader::Int(const std::string& name) const {
  int64_t value = 0;
  RETURN_IF_ERROR(Read(name, Hdf5Type::kI64, {}, &value));
  return value;
}

absl::StatusOr<double> Hdf5Reader::Float(const std::string& name) const {
  double value = 0;
  RETURN_IF_ERROR(Read(name, Hdf5Type::kF64, {}, &value));
  return value;
}

}  // namespace thimble
