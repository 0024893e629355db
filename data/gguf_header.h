// The front of a GGUF file, read and checked as a whole: metadata and the table of tensors. Tensor data stay in the
// file.
// Source: ggml's GGUF format, versions 2 and 3, little-endian.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "data/tensor_file.h"

namespace thimble {

// As numbered in files.
enum class GgufType : uint32_t { kU8, kI8, kU16, kI16, kU32, kI32, kF32, kBool, kString, kArray, kU64, kI64, kF64 };
std::string_view NameOf(GgufType type);  // "u32", "string"

// A value, or an array of values of one type. What `type` is decides which of the lists holds it.
struct GgufValue {
  GgufType type = GgufType::kU32;  // of an array: of its elements; never kArray
  bool is_array = false;
  std::vector<int64_t> integers;  // integers and bools; a u64 beyond int64 is refused
  std::vector<double> floats;
  std::vector<std::string> strings;

  int64_t size() const { return static_cast<int64_t>(integers.size() + floats.size() + strings.size()); }
  // "12", "gpt2", "512 strings".
  std::string Text() const;
};

struct GgufEntry {
  std::string key;
  GgufValue value;
};

class GgufHeader {
 public:
  explicit GgufHeader(std::string path) : path_(std::move(path)) {}

  const std::string& path() const { return path_; }
  const std::vector<GgufEntry>& entries() const { return entries_; }
  // In file order; shapes are outermost first ([out, in]), offsets count from data_begin.
  const std::vector<TensorInfo>& tensors() const { return tensors_; }
  int64_t data_begin() const { return data_begin_; }

  // Null when there is no such key.
  const GgufValue* Find(std::string_view key) const;
  // Values of a key: `absent` where there is none and a default is given; InvalidArgument, with file, key and what was
  // found, where it is missing or of another type.
  absl::StatusOr<int64_t> Integer(const std::string& key, int64_t low, int64_t high) const;
  absl::StatusOr<int64_t> Integer(const std::string& key, int64_t low, int64_t high, int64_t absent) const;
  // The id of a token below `count`; -1 where there is no such key or it holds u32's largest number, as files have it
  // for none.
  absl::StatusOr<int64_t> TokenId(const std::string& key, int64_t count) const;
  absl::StatusOr<double> Float(const std::string& key, double absent) const;
  absl::StatusOr<bool> Bool(const std::string& key, bool absent) const;
  absl::StatusOr<std::string> String(const std::string& key, const std::string& absent) const;
  // The array of a key, of exactly `count` elements where that is not negative; null where it is absent.
  absl::StatusOr<const GgufValue*> Array(const std::string& key, GgufType type, int64_t count) const;
  absl::Status Error(const std::string& key, const std::string& expected) const;

 private:
  friend class GgufReader;
  std::string path_;
  std::vector<GgufEntry> entries_;
  absl::flat_hash_map<std::string, size_t> index_;
  std::vector<TensorInfo> tensors_;
  int64_t data_begin_ = 0;
};

// Whether `path` is a regular file that begins as GGUF files do.
bool IsGgufFile(const std::string& path);

// NotFound and the like as ReadFile; DataLoss for a file cut short, InvalidArgument for anything else, each with the
// place in the file. Memory: what the header says, after its lengths were checked against the file's.
absl::StatusOr<GgufHeader> ReadGgufHeader(const std::string& path);

// The tensor types that are read and written here, by ggml's number for them.
std::optional<TensorDType> TensorDTypeFromGgml(uint32_t type);
std::optional<uint32_t> GgmlTypeOf(TensorDType dtype);

inline constexpr int64_t kGgufAlignment = 32;  // where a file states no other

}  // namespace thimble
