#include "data/tensor_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "data/file.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors data are little-endian");

constexpr int64_t kMaxHeaderBytes = 100'000'000;  // the library's limit
constexpr int kMaxDepth = 128;                    // of nested arrays and objects; its parser's limit

absl::Status Invalid(const std::string& path, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

absl::Status InvalidTensor(const std::string& path, const std::string& name, const std::string& what) {
  return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", name, "\": ", what));
}

// What the JSON parser would let pass: a byte order mark, NUL after the end, and nesting deep enough to eat memory.
absl::Status CheckHeaderText(const std::string& path, const std::string& text) {
  if (text.find('\0') != std::string::npos) return Invalid(path, "the safetensors header holds a NUL byte");
  if (text.compare(0, 3, "\xef\xbb\xbf") == 0) {
    return Invalid(path, "the safetensors header starts with a byte order mark, expected {");
  }
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') ++i;
      if (c == '"') in_string = false;
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > kMaxDepth) return Invalid(path, "the safetensors header nests too deeply");
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return absl::OkStatus();
}

// A count or an offset: an unsigned JSON integer that fits int64.
bool ReadUnsigned(const nlohmann::json& value, int64_t* out) {
  if (!value.is_number_unsigned()) return false;
  const uint64_t number = value.get<uint64_t>();
  if (number > static_cast<uint64_t>(INT64_MAX)) return false;
  *out = static_cast<int64_t>(number);
  return true;
}

absl::Status ReadMetadata(const std::string& path, const nlohmann::json& value,
                          std::map<std::string, std::string>* metadata) {
  if (value.is_null()) return absl::OkStatus();
  if (!value.is_object()) return Invalid(path, "__metadata__ must be an object of strings");
  for (const auto& [key, text] : value.items()) {
    if (!text.is_string()) return Invalid(path, absl::StrCat("__metadata__ \"", key, "\" must be a string"));
    (*metadata)[key] = text.get<std::string>();
  }
  return absl::OkStatus();
}

// Shape, element count and size in bytes; begin and end as written.
absl::StatusOr<TensorInfo> ReadEntry(const std::string& path, const std::string& name, const nlohmann::json& entry) {
  if (!entry.is_object()) return InvalidTensor(path, name, "expected an object with dtype, shape and data_offsets");
  for (const char* field : {"dtype", "shape", "data_offsets"}) {
    if (!entry.contains(field)) return InvalidTensor(path, name, absl::StrCat("has no ", field));
  }
  TensorInfo info;
  info.name = name;
  const nlohmann::json& dtype = entry["dtype"];
  const auto known = dtype.is_string() ? TensorDTypeFromName(dtype.get_ref<const std::string&>()) : std::nullopt;
  if (!known) {
    return InvalidTensor(path, name, absl::StrCat("unknown dtype ", dtype.dump(), "; expected F32, BF16, F16, ..."));
  }
  info.dtype = *known;
  const nlohmann::json& shape = entry["shape"];
  if (!shape.is_array()) return InvalidTensor(path, name, "shape must be an array of sizes");
  info.elements = 1;
  for (const nlohmann::json& item : shape) {
    int64_t size = 0;
    if (!ReadUnsigned(item, &size)) {
      return InvalidTensor(path, name, absl::StrCat("shape holds ", item.dump(), ", expected a whole number >= 0"));
    }
    if (__builtin_mul_overflow(info.elements, size, &info.elements)) {
      return InvalidTensor(path, name, "the product of its shape overflows");
    }
    info.shape.push_back(size);
  }
  int64_t bits = 0;
  if (__builtin_mul_overflow(info.elements, BitsOf(info.dtype), &bits)) {
    return InvalidTensor(path, name, "its size in bytes overflows");
  }
  if (bits % 8 != 0) return InvalidTensor(path, name, "its elements do not fill whole bytes");
  const nlohmann::json& offsets = entry["data_offsets"];
  int64_t end = 0;
  if (!offsets.is_array() || offsets.size() != 2 || !ReadUnsigned(offsets[0], &info.begin) ||
      !ReadUnsigned(offsets[1], &end)) {
    return InvalidTensor(path, name, absl::StrCat("data_offsets are ", offsets.dump(), ", expected [begin, end]"));
  }
  if (info.begin > end) {
    return InvalidTensor(path, name, absl::StrCat("data_offsets begin ", info.begin, " is past their end ", end));
  }
  info.bytes = end - info.begin;
  if (info.bytes != bits / 8) {
    return InvalidTensor(path, name,
                         absl::StrCat("data_offsets give ", info.bytes, " bytes, but ", std::string(NameOf(info.dtype)),
                                      " ", ShapeText(info.shape), " needs ", bits / 8));
  }
  return info;
}

// Tensors in offset order must cover [0, data_bytes) without holes or overlaps.
absl::Status CheckLayout(const std::string& path, const std::vector<TensorInfo>& tensors, int64_t data_bytes) {
  int64_t position = 0;
  for (const TensorInfo& tensor : tensors) {
    if (tensor.begin != position) {
      return InvalidTensor(
          path, tensor.name,
          absl::StrCat("its data begin at byte ", tensor.begin, ", expected ", position, " (",
                       tensor.begin < position ? "overlap with" : "hole after", " the tensor before it)"));
    }
    position += tensor.bytes;
    if (position > data_bytes) {
      return absl::DataLossError(absl::StrCat(path, ": tensor \"", tensor.name, "\": its data end at byte ", position,
                                              " but the file has only ", data_bytes,
                                              " bytes of data: it is cut short; fetch it again"));
    }
  }
  if (position != data_bytes) {
    return Invalid(path, absl::StrCat(data_bytes, " bytes of data, but the tensors take ", position));
  }
  return absl::OkStatus();
}

}  // namespace

std::string ShapeText(const std::vector<int64_t>& shape) { return absl::StrCat("[", absl::StrJoin(shape, ", "), "]"); }

int64_t TensorInfo::StoredOffset(int64_t offset) const {
  if (head_rows == 0) return offset;
  const int64_t row_bytes = bytes / shape[0], half = head_rows / 2;
  const int64_t row = offset / row_bytes, in_head = row % head_rows;
  const int64_t stored = row - in_head + in_head % half * 2 + in_head / half;
  return stored * row_bytes + offset % row_bytes;
}

int64_t TensorInfo::BytesToEndOfRow(int64_t offset) const {
  const int64_t row_bytes = bytes / shape[0];
  return row_bytes - offset % row_bytes;
}

absl::StatusOr<std::unique_ptr<TensorFile>> TensorFile::Open(const std::string& path) {
  // Without O_NONBLOCK a named pipe would wait for a writer.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus("open", path);
  std::unique_ptr<TensorFile> file(new TensorFile(path, fd));
  RETURN_IF_ERROR(file->ReadHeader());
  return file;
}

absl::StatusOr<std::unique_ptr<TensorFile>> TensorFile::OpenTable(const std::string& path, int64_t data_begin,
                                                                  std::vector<TensorInfo> tensors) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus("open", path);
  std::unique_ptr<TensorFile> file(new TensorFile(path, fd));
  file->data_begin_ = data_begin;
  file->tensors_ = std::move(tensors);
  for (size_t i = 0; i < file->tensors_.size(); ++i) file->index_[file->tensors_[i].name] = i;
  return file;
}

TensorFile::~TensorFile() { ::close(fd_); }

absl::Status TensorFile::ReadHeader() {
  struct stat stat;
  if (::fstat(fd_, &stat) != 0) return ErrnoStatus("read", path_);
  if (!S_ISREG(stat.st_mode)) return Invalid(path_, "is not a regular file");
  const int64_t file_bytes = stat.st_size;
  if (file_bytes < 8) {
    return absl::DataLossError(absl::StrCat(path_, ": ", file_bytes, " bytes, too short for a safetensors file"));
  }
  uint64_t header_bytes = 0;
  RETURN_IF_ERROR(ReadAt(0, 8, &header_bytes));
  if (header_bytes > static_cast<uint64_t>(kMaxHeaderBytes)) {
    return Invalid(path_, absl::StrCat("header of ", header_bytes, " bytes, at most ", kMaxHeaderBytes,
                                       " are allowed: is this a safetensors file?"));
  }
  if (static_cast<int64_t>(header_bytes) > file_bytes - 8) {
    return absl::DataLossError(absl::StrCat(path_, ": header of ", header_bytes, " bytes, but the file has only ",
                                            file_bytes - 8, " after the length: it is cut short"));
  }
  data_begin_ = 8 + static_cast<int64_t>(header_bytes);
  std::string text(header_bytes, '\0');
  RETURN_IF_ERROR(ReadAt(8, static_cast<int64_t>(header_bytes), text.data()));
  RETURN_IF_ERROR(CheckHeaderText(path_, text));
  const nlohmann::json header = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (header.is_discarded()) return Invalid(path_, "the safetensors header is not valid JSON in UTF-8");
  if (!header.is_object()) return Invalid(path_, "the safetensors header is not a JSON object");
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      RETURN_IF_ERROR(ReadMetadata(path_, entry, &metadata_));
      continue;
    }
    ASSIGN_OR_RETURN(TensorInfo info, ReadEntry(path_, name, entry));
    tensors_.push_back(std::move(info));
  }
  std::stable_sort(tensors_.begin(), tensors_.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return std::pair(a.begin, a.bytes) < std::pair(b.begin, b.bytes);
  });
  for (size_t i = 0; i < tensors_.size(); ++i) index_[tensors_[i].name] = i;
  return CheckLayout(path_, tensors_, file_bytes - data_begin_);
}

const TensorInfo* TensorFile::Find(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

absl::Status TensorFile::ReadAt(int64_t position, int64_t bytes, void* out) const {
  char* next = static_cast<char*>(out);
  while (bytes > 0) {
    const ssize_t count = ::pread(fd_, next, static_cast<size_t>(bytes), position);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return ErrnoStatus("read", path_);
    if (count == 0) return absl::DataLossError(absl::StrCat(path_, ": became shorter while it was read"));
    next += count;
    position += count;
    bytes -= count;
  }
  return absl::OkStatus();
}

absl::Status TensorFile::ReadBytes(const TensorInfo& tensor, int64_t offset, int64_t bytes, void* out) const {
  CHECK(offset >= 0 && bytes >= 0 && offset <= tensor.bytes - bytes) << tensor.name << " " << offset << " " << bytes;
  const int64_t begin = data_begin_ + tensor.begin;
  if (tensor.head_rows == 0) return ReadAt(begin + offset, bytes, out);
  char* next = static_cast<char*>(out);
  for (const int64_t end = offset + bytes; offset < end;) {
    const int64_t count = std::min(end - offset, tensor.BytesToEndOfRow(offset));
    RETURN_IF_ERROR(ReadAt(begin + tensor.StoredOffset(offset), count, next));
    next += count;
    offset += count;
  }
  return absl::OkStatus();
}

absl::Status TensorFile::ReadFloats(const TensorInfo& tensor, int64_t first, int64_t count, float* out) const {
  CHECK(first >= 0 && count >= 0 && first <= tensor.elements - count) << tensor.name << " " << first << " " << count;
  const std::optional<Format> format = FormatOf(tensor.dtype);
  if (!format) {
    return InvalidTensor(
        path_, tensor.name,
        absl::StrCat("is ", std::string(NameOf(tensor.dtype)), ", expected F32, BF16, F16 or a block type"));
  }
  if (*format == Format::kF32) return ReadBytes(tensor, first * 4, count * 4, out);
  alignas(64) char stored[32768];
  const FormatInfo& info = InfoOf(*format);
  const int64_t block = info.values_per_block;
  const int64_t most = static_cast<int64_t>(sizeof(stored)) / info.bytes_per_block * block;
  WeightView view;
  view.format = *format;
  view.data = stored;
  for (const int64_t end = first + count; first < end;) {
    // Whole blocks around the elements.
    const int64_t from = first / block * block;
    const int64_t next = std::min(end, from + most);
    const int64_t to = (next + block - 1) / block * block;
    RETURN_IF_ERROR(ReadBytes(tensor, StoredBytes(*format, from), StoredBytes(*format, to - from), stored));
    DecodeRow(view, 0, first - from, next - first, out);
    out += next - first;
    first = next;
  }
  return absl::OkStatus();
}

}  // namespace thimble
