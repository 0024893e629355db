#include "data/gguf_header.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "data/byte_source.h"
#include "data/file.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr char kMagic[4] = {'G', 'G', 'U', 'F'};
constexpr int64_t kMaxNameBytes = 63;  // ggml's limit for tensors
constexpr int kMaxDimensions = 4;
constexpr int64_t kMaxAlignment = int64_t{1} << 20;

struct TypeRow {
  std::string_view name;
  int64_t bytes;  // 0: has a length of its own
};
constexpr TypeRow kTypes[] = {{"u8", 1},   {"i8", 1},     {"u16", 2},   {"i16", 2}, {"u32", 4}, {"i32", 4}, {"f32", 4},
                              {"bool", 1}, {"string", 0}, {"array", 0}, {"u64", 8}, {"i64", 8}, {"f64", 8}};
constexpr uint32_t kTypeCount = sizeof(kTypes) / sizeof(kTypes[0]);

struct GgmlRow {
  uint32_t number;
  TensorDType dtype;
};
constexpr GgmlRow kGgmlTypes[] = {
    {0, TensorDType::kF32},    {1, TensorDType::kF16},    {2, TensorDType::kQ4_0},   {3, TensorDType::kQ4_1},
    {6, TensorDType::kQ5_0},   {7, TensorDType::kQ5_1},   {8, TensorDType::kQ8_0},   {12, TensorDType::kQ4K},
    {13, TensorDType::kQ5K},   {14, TensorDType::kQ6K},   {24, TensorDType::kI8},    {25, TensorDType::kI16},
    {26, TensorDType::kI32},   {27, TensorDType::kI64},   {28, TensorDType::kF64},   {30, TensorDType::kBF16},
    {34, TensorDType::kTQ1_0}, {35, TensorDType::kTQ2_0}, {39, TensorDType::kMXFP4}, {40, TensorDType::kNVFP4},
};

// Names of those that are not read, for errors.
std::string UnreadTypeName(uint32_t type) {
  constexpr std::pair<uint32_t, const char*> kNames[] = {
      {9, "Q8_1"},   {10, "Q2_K"},   {11, "Q3_K"},  {15, "Q8_K"},  {16, "IQ2_XXS"}, {17, "IQ2_XS"}, {18, "IQ3_XXS"},
      {19, "IQ1_S"}, {20, "IQ4_NL"}, {21, "IQ3_S"}, {22, "IQ2_S"}, {23, "IQ4_XS"},  {29, "IQ1_M"}};
  for (const auto& [number, name] : kNames) {
    if (number == type) return absl::StrCat(type, " (", name, ")");
  }
  return absl::StrCat(type);
}

}  // namespace

std::string_view NameOf(GgufType type) { return kTypes[static_cast<uint32_t>(type)].name; }

std::optional<TensorDType> TensorDTypeFromGgml(uint32_t type) {
  for (const GgmlRow& row : kGgmlTypes) {
    if (row.number == type) return row.dtype;
  }
  return std::nullopt;
}

std::optional<uint32_t> GgmlTypeOf(TensorDType dtype) {
  for (const GgmlRow& row : kGgmlTypes) {
    if (row.dtype == dtype) return row.number;
  }
  return std::nullopt;
}

// Reads front to back through a buffer; knows the place for errors.
class GgufReader {
 public:
  GgufReader(int fd, int64_t file_bytes, GgufHeader* header) : fd_(fd), file_bytes_(file_bytes), header_(*header) {}

  absl::Status ReadAll() {
    RETURN_IF_ERROR(ReadStart());
    for (int64_t i = 0; i < entry_count_; ++i) RETURN_IF_ERROR(ReadEntry(i));
    RETURN_IF_ERROR(ReadAlignment());
    for (int64_t i = 0; i < tensor_count_; ++i) RETURN_IF_ERROR(ReadTensor(i));
    return CheckData();
  }

 private:
  absl::Status Error(const std::string& what) const {
    return absl::InvalidArgumentError(absl::StrCat(header_.path_, ": ", what));
  }
  absl::Status CutShort(const std::string& place) const {
    return absl::DataLossError(absl::StrCat(header_.path_, ": ", place, " reaches past the end of the file (",
                                            file_bytes_, " bytes): it is cut short; fetch it again"));
  }
  int64_t left() const { return file_bytes_ - position_; }

  // Exactly `bytes` more, which the file must have.
  absl::Status Take(int64_t bytes, void* out, const std::string& place) {
    if (bytes > left()) return CutShort(place);
    char* next = static_cast<char*>(out);
    while (bytes > 0) {
      if (buffer_next_ == buffer_.size()) RETURN_IF_ERROR(Fill());
      const int64_t count = std::min<int64_t>(bytes, static_cast<int64_t>(buffer_.size() - buffer_next_));
      std::memcpy(next, buffer_.data() + buffer_next_, static_cast<size_t>(count));
      buffer_next_ += static_cast<size_t>(count);
      position_ += count;
      next += count;
      bytes -= count;
    }
    return absl::OkStatus();
  }

  absl::Status Fill() {
    buffer_.resize(size_t{1} << 16);
    for (;;) {
      const ssize_t count = ::pread(fd_, buffer_.data(), buffer_.size(), position_);
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return ErrnoStatus("read", header_.path_);
      if (count == 0) return CutShort("the header");
      buffer_.resize(static_cast<size_t>(count));
      buffer_next_ = 0;
      return absl::OkStatus();
    }
  }

  template <typename T>
  absl::Status TakeNumber(T* out, const std::string& place) {
    return Take(sizeof(T), out, place);
  }

  // A u64 that counts things of at least `least` bytes each, which the rest of the file must have.
  absl::Status TakeCount(int64_t least, int64_t* out, const std::string& place) {
    uint64_t count;
    RETURN_IF_ERROR(TakeNumber(&count, place));
    if (count > static_cast<uint64_t>(left() / least)) {
      return absl::DataLossError(absl::StrCat(header_.path_, ": ", place, " is ", count, ", but only ", left(),
                                              " bytes follow: it is damaged or cut short; fetch it again"));
    }
    *out = static_cast<int64_t>(count);
    return absl::OkStatus();
  }

  absl::Status TakeString(std::string* out, const std::string& place) {
    int64_t bytes;
    RETURN_IF_ERROR(TakeCount(1, &bytes, absl::StrCat("the length of ", place)));
    out->resize(static_cast<size_t>(bytes));
    return Take(bytes, out->data(), place);
  }

  absl::Status ReadStart() {
    char magic[4];
    RETURN_IF_ERROR(Take(4, magic, "the magic number"));
    if (std::memcmp(magic, kMagic, 4) != 0) return Error("does not begin with GGUF: it is no GGUF file");
    uint32_t version;
    RETURN_IF_ERROR(TakeNumber(&version, "the version"));
    if (version != 2 && version != 3) {
      const bool swapped = (version & 0xffff) == 0 && version != 0;
      return Error(swapped ? "is a big-endian GGUF file; expected a little-endian one"
                           : absl::StrCat("is of GGUF version ", version, "; expected 2 or 3"));
    }
    // Name, dimensions and so on: 24 bytes a tensor and 13 a key are the least.
    RETURN_IF_ERROR(TakeCount(24, &tensor_count_, "the number of tensors"));
    return TakeCount(13, &entry_count_, "the number of metadata keys");
  }

  absl::Status TakeType(GgufType* type, const std::string& place) {
    uint32_t number;
    RETURN_IF_ERROR(TakeNumber(&number, place));
    if (number >= kTypeCount) return Error(absl::StrCat(place, " is of unknown type ", number));
    *type = static_cast<GgufType>(number);
    return absl::OkStatus();
  }

  absl::Status TakeElement(const std::string& place, GgufValue* value) {
    if (value->type == GgufType::kString) {
      RETURN_IF_ERROR(TakeString(&value->strings.emplace_back(), place));
      return absl::OkStatus();
    }
    char bytes[8] = {};
    const int64_t width = kTypes[static_cast<uint32_t>(value->type)].bytes;
    RETURN_IF_ERROR(Take(width, bytes, place));
    const auto as = [&bytes](auto number) {
      std::memcpy(&number, bytes, sizeof(number));
      return number;
    };
    switch (value->type) {
      case GgufType::kF32:
        value->floats.push_back(as(float{}));
        return absl::OkStatus();
      case GgufType::kF64:
        value->floats.push_back(as(double{}));
        return absl::OkStatus();
      case GgufType::kI8:
        value->integers.push_back(as(int8_t{}));
        return absl::OkStatus();
      case GgufType::kI16:
        value->integers.push_back(as(int16_t{}));
        return absl::OkStatus();
      case GgufType::kI32:
        value->integers.push_back(as(int32_t{}));
        return absl::OkStatus();
      default:
        value->integers.push_back(as(int64_t{}));
    }
    if (value->type == GgufType::kU64 && value->integers.back() < 0) {
      return Error(absl::StrCat(place, " is larger than any number expected here"));
    }
    if (value->type == GgufType::kBool && value->integers.back() > 1) {
      return Error(absl::StrCat(place, " is ", value->integers.back(), ", expected 0 or 1 for a bool"));
    }
    return absl::OkStatus();
  }

  absl::Status ReadEntry(int64_t i) {
    GgufEntry entry;
    RETURN_IF_ERROR(TakeString(&entry.key, absl::StrCat("metadata key ", i)));
    if (entry.key.empty() || FindInvalidUtf8(entry.key) >= 0) {
      return Error(absl::StrCat("metadata key ", i, " is empty or not UTF-8"));
    }
    const std::string place = absl::StrCat("metadata \"", entry.key, "\"");
    GgufValue& value = entry.value;
    RETURN_IF_ERROR(TakeType(&value.type, place));
    int64_t count = 1;
    if (value.type == GgufType::kArray) {
      value.is_array = true;
      RETURN_IF_ERROR(TakeType(&value.type, absl::StrCat(place, ", its elements,")));
      if (value.type == GgufType::kArray) return Error(absl::StrCat(place, " is an array of arrays"));
      const int64_t width = kTypes[static_cast<uint32_t>(value.type)].bytes;
      RETURN_IF_ERROR(TakeCount(width > 0 ? width : 8, &count, absl::StrCat("the length of ", place)));
    }
    for (int64_t k = 0; k < count; ++k) RETURN_IF_ERROR(TakeElement(place, &value));
    if (!header_.index_.emplace(entry.key, header_.entries_.size()).second) return Error(place + " is there twice");
    header_.entries_.push_back(std::move(entry));
    return absl::OkStatus();
  }

  absl::Status ReadAlignment() {
    ASSIGN_OR_RETURN(alignment_, header_.Integer("general.alignment", 1, kMaxAlignment, kGgufAlignment));
    if ((alignment_ & (alignment_ - 1)) == 0) return absl::OkStatus();
    return header_.Error("general.alignment", "a power of two");
  }

  absl::Status ReadTensor(int64_t i) {
    TensorInfo info;
    RETURN_IF_ERROR(TakeString(&info.name, absl::StrCat("the name of tensor ", i)));
    const std::string place = absl::StrCat("tensor \"", info.name, "\"");
    if (info.name.empty() || info.name.size() > kMaxNameBytes || FindInvalidUtf8(info.name) >= 0) {
      return Error(
          absl::StrCat("the name of tensor ", i, " is empty, longer than ", kMaxNameBytes, " bytes or not UTF-8"));
    }
    if (!names_.insert(info.name).second) return Error(place + " is there twice");
    uint32_t dimensions;
    RETURN_IF_ERROR(TakeNumber(&dimensions, place));
    if (dimensions < 1 || dimensions > kMaxDimensions) {
      return Error(absl::StrCat(place, " has ", dimensions, " dimensions, expected 1 to ", kMaxDimensions));
    }
    info.elements = 1;
    for (uint32_t d = 0; d < dimensions; ++d) {
      uint64_t size;
      RETURN_IF_ERROR(TakeNumber(&size, place));
      const bool fits = size > 0 && size <= static_cast<uint64_t>(INT64_MAX) &&
                        !__builtin_mul_overflow(info.elements, static_cast<int64_t>(size), &info.elements);
      if (!fits)
        return Error(absl::StrCat(place, " has dimension ", d, " of size ", size, ": 0, or too many elements"));
      info.shape.insert(info.shape.begin(), static_cast<int64_t>(size));
    }
    uint32_t type;
    RETURN_IF_ERROR(TakeNumber(&type, place));
    const std::optional<TensorDType> dtype = TensorDTypeFromGgml(type);
    if (!dtype) {
      return Error(absl::StrCat(place, " is of ggml's type ", UnreadTypeName(type),
                                ", expected F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K, TQ1_0, "
                                "TQ2_0, MXFP4 or NVFP4"));
    }
    info.dtype = *dtype;
    RETURN_IF_ERROR(SetBytes(place, &info));
    return CheckOffset(place, &info);
  }

  absl::Status SetBytes(const std::string& place, TensorInfo* info) {
    const TypeSize size = SizeOf(info->dtype);
    if (info->shape.back() % size.elements != 0) {
      return Error(absl::StrCat(place, " is ", std::string(NameOf(info->dtype)), " with rows of ", info->shape.back(),
                                ", expected a multiple of ", size.elements));
    }
    if (__builtin_mul_overflow(info->elements / size.elements, size.bytes, &info->bytes) ||
        info->bytes > INT64_MAX - kMaxAlignment) {
      return Error(place + ": its size in bytes overflows");
    }
    return absl::OkStatus();
  }

  absl::Status CheckOffset(const std::string& place, TensorInfo* info) {
    uint64_t offset;
    RETURN_IF_ERROR(TakeNumber(&offset, place));
    if (offset != static_cast<uint64_t>(next_offset_)) {
      return Error(absl::StrCat(place, " begins at byte ", offset, " of the data, expected ", next_offset_,
                                ", the end of the one before it rounded up to ", alignment_));
    }
    info->begin = next_offset_;
    const int64_t padded = (info->bytes + alignment_ - 1) / alignment_ * alignment_;
    if (__builtin_add_overflow(next_offset_, padded, &next_offset_)) return Error(place + " ends past any file");
    header_.tensors_.push_back(std::move(*info));
    return absl::OkStatus();
  }

  absl::Status CheckData() {
    header_.data_begin_ = (position_ + alignment_ - 1) / alignment_ * alignment_;
    for (const TensorInfo& info : header_.tensors_) {
      if (info.begin <= file_bytes_ - header_.data_begin_ - info.bytes) continue;
      return CutShort(absl::StrCat("tensor \"", info.name, "\""));
    }
    return absl::OkStatus();
  }

  int fd_;
  int64_t file_bytes_;
  GgufHeader& header_;
  std::vector<char> buffer_;
  size_t buffer_next_ = 0;
  int64_t position_ = 0;
  int64_t tensor_count_ = 0, entry_count_ = 0;
  int64_t alignment_ = kGgufAlignment;
  int64_t next_offset_ = 0;
  absl::flat_hash_set<std::string> names_;
};

absl::StatusOr<GgufHeader> ReadGgufHeader(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return ErrnoStatus("open", path);
  struct stat stat;
  GgufHeader header(path);
  absl::Status status;
  if (::fstat(fd, &stat) != 0) {
    status = ErrnoStatus("read", path);
  } else if (!S_ISREG(stat.st_mode)) {
    status = absl::InvalidArgumentError(path + ": is not a regular file");
  } else {
    status = GgufReader(fd, stat.st_size, &header).ReadAll();
  }
  ::close(fd);
  if (!status.ok()) return status;
  return header;
}

bool IsGgufFile(const std::string& path) {
  struct stat stat;
  if (::stat(path.c_str(), &stat) != 0 || !S_ISREG(stat.st_mode)) return false;
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) return false;
  char magic[4];
  const bool is_gguf = ::pread(fd, magic, 4, 0) == 4 && std::memcmp(magic, kMagic, 4) == 0;
  ::close(fd);
  return is_gguf;
}

}  // namespace thimble
