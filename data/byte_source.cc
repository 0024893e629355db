#include "data/byte_source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <cerrno>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/file.h"
#include "ops/check.h"

namespace thimble {
namespace {

constexpr size_t kBufferBytes = size_t{1} << 16;
constexpr unsigned char kZstdMagic[4] = {0x28, 0xB5, 0x2F, 0xFD};

class FileSource : public ByteSource {
 public:
  FileSource(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  ~FileSource() override { ::close(fd_); }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    while (true) {
      const ssize_t count = ::read(fd_, out, size);
      if (count >= 0) return static_cast<size_t>(count);
      if (errno != EINTR) return ErrnoStatus("read", path_);
    }
  }

 private:
  std::string path_;
  int fd_;
};

class ZstdSource : public ByteSource {
 public:
  ZstdSource(std::string path, std::unique_ptr<ByteSource> file)
      : path_(std::move(path)), file_(std::move(file)), stream_(ZSTD_createDStream()), buffer_(ZSTD_DStreamInSize()) {}
  ~ZstdSource() override { ZSTD_freeDStream(stream_); }

  absl::StatusOr<size_t> Read(char* out, size_t size) override {
    ZSTD_outBuffer output{out, size, 0};
    while (output.pos == 0 && size > 0) {
      if (input_.pos == input_.size && !flushing_) {
        ASSIGN_OR_RETURN(const size_t count, file_->Read(buffer_.data(), buffer_.size()));
        if (count == 0) {
          if (!frame_complete_)
            return absl::DataLossError(absl::StrCat(path_, " is cut short: its zstd frame does not end"));
          return 0;
        }
        input_ = {buffer_.data(), count, 0};
      }
      const size_t result = ZSTD_decompressStream(stream_, &output, &input_);
      if (ZSTD_isError(result) != 0) {
        return absl::DataLossError(absl::StrCat(path_, " is damaged: zstd: ", ZSTD_getErrorName(result)));
      }
      frame_complete_ = result == 0;
      // A full output buffer may leave decompressed bytes inside; they come before more input.
      flushing_ = output.pos == output.size && !frame_complete_;
    }
    return output.pos;
  }

 private:
  std::string path_;
  std::unique_ptr<ByteSource> file_;
  ZSTD_DStream* stream_;
  std::vector<char> buffer_;
  ZSTD_inBuffer input_{nullptr, 0, 0};
  bool frame_complete_ = false;
  bool flushing_ = false;
};

absl::StatusOr<std::unique_ptr<FileSource>> OpenPlain(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoStatus("open", path);
  auto file = std::make_unique<FileSource>(path, fd);
  struct stat info;
  if (::fstat(fd, &info) != 0) return ErrnoStatus("examine", path);
  if (S_ISDIR(info.st_mode)) return absl::InvalidArgumentError(absl::StrCat(path, " is a folder; expected a file"));
  return file;
}

bool IsJsonSpace(int byte) { return byte == ' ' || byte == '\t' || byte == '\n' || byte == '\r'; }

}  // namespace

absl::StatusOr<std::unique_ptr<ByteSource>> ByteSource::Open(const std::string& path) {
  char start[sizeof(kZstdMagic)];
  size_t count = 0;
  {
    ASSIGN_OR_RETURN(const std::unique_ptr<FileSource> file, OpenPlain(path));
    ASSIGN_OR_RETURN(count, file->Read(start, sizeof(start)));
  }
  ASSIGN_OR_RETURN(std::unique_ptr<FileSource> file, OpenPlain(path));
  if (count == sizeof(start) && std::memcmp(start, kZstdMagic, sizeof(start)) == 0) {
    return std::make_unique<ZstdSource>(path, std::move(file));
  }
  return file;
}

absl::StatusOr<bool> LineReader::Fill() {
  if (next_ < buffer_.size()) return true;
  buffer_.resize(kBufferBytes);
  next_ = 0;
  auto count = source_->Read(buffer_.data(), buffer_.size());
  buffer_.resize(count.ok() ? *count : 0);
  if (!count.ok()) return count.status();
  return *count > 0;
}

absl::StatusOr<int> LineReader::Peek() {
  ASSIGN_OR_RETURN(const bool more, Fill());
  return more ? static_cast<unsigned char>(buffer_[next_]) : -1;
}

void LineReader::Take() {
  if (buffer_[next_++] == '\n') ++line_;
}

absl::StatusOr<bool> LineReader::AppendLine(std::string* out) {
  bool any = false;
  while (true) {
    ASSIGN_OR_RETURN(const bool more, Fill());
    if (!more) return any;
    any = true;
    const size_t newline = buffer_.find('\n', next_);
    const size_t end = newline == std::string::npos ? buffer_.size() : newline + 1;
    out->append(buffer_, next_, end - next_);
    next_ = end;
    if (newline != std::string::npos) {
      ++line_;
      return true;
    }
  }
}

absl::Status LineReader::SkipByteOrderMark() {
  ASSIGN_OR_RETURN(const bool more, Fill());
  // A regular file's first read gives the three bytes together; zstd gives whole blocks.
  if (more && buffer_.compare(next_, 3, "\xEF\xBB\xBF") == 0) next_ += 3;
  return absl::OkStatus();
}

absl::Status LineReader::SkipSpace() {
  while (true) {
    ASSIGN_OR_RETURN(const int byte, Peek());
    if (!IsJsonSpace(byte)) return absl::OkStatus();
    Take();
  }
}

absl::StatusOr<bool> LineReader::AppendJsonValue(std::string* out) {
  int64_t depth = 0;
  bool in_string = false;
  bool escaped = false;
  while (true) {
    ASSIGN_OR_RETURN(const int next, Peek());
    if (next < 0) return depth == 0 && !in_string;
    const char byte = static_cast<char>(next);
    // A bare value (number, true) ends before the comma or bracket of what is around it.
    if (depth == 0 && !in_string && (byte == ',' || byte == ']' || byte == '}')) return true;
    out->push_back(byte);
    Take();
    if (in_string) {
      if (escaped) {
        escaped = false;
      } else if (byte == '\\') {
        escaped = true;
      } else if (byte == '"') {
        in_string = false;
        if (depth == 0) return true;
      }
    } else if (byte == '"') {
      in_string = true;
    } else if (byte == '{' || byte == '[') {
      ++depth;
    } else if (byte == '}' || byte == ']') {
      if (--depth == 0) return true;
    }
  }
}

namespace {

// Length of the valid sequence at `p` (at most `left` bytes), or 0. Source: Unicode 16.0, table 3-7.
int64_t SequenceLength(const unsigned char* p, int64_t left) {
  if (p[0] < 0x80) return 1;
  if (p[0] < 0xC2 || p[0] > 0xF4) return 0;
  const int64_t length = p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
  if (left < length) return 0;
  unsigned low = 0x80;
  unsigned high = 0xBF;
  if (p[0] == 0xE0) low = 0xA0;
  if (p[0] == 0xED) high = 0x9F;
  if (p[0] == 0xF0) low = 0x90;
  if (p[0] == 0xF4) high = 0x8F;
  if (p[1] < low || p[1] > high) return 0;
  for (int64_t i = 2; i < length; ++i) {
    if (p[i] < 0x80 || p[i] > 0xBF) return 0;
  }
  return length;
}

}  // namespace

int64_t FindInvalidUtf8(std::string_view text) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(text.data());
  const auto size = static_cast<int64_t>(text.size());
  for (int64_t i = 0; i < size;) {
    const int64_t length = SequenceLength(bytes + i, size - i);
    if (length == 0) return i;
    i += length;
  }
  return -1;
}

}  // namespace thimble
