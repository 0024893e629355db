#include "data/safetensors_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"
#include "ops/check.h"

namespace thimble {
namespace {

std::string Quoted(const std::string& text) { return nlohmann::json(text).dump(); }

// Sizes and offsets in the library's order of tensors.
absl::StatusOr<std::vector<TensorInfo>> LayOut(const std::string& path, const std::vector<TensorSpec>& specs) {
  std::vector<TensorInfo> tensors;
  for (const TensorSpec& spec : specs) {
    TensorInfo info;
    info.name = spec.name;
    info.dtype = spec.dtype;
    info.shape = spec.shape;
    info.elements = 1;
    bool overflow = false;
    for (const int64_t size : spec.shape) {
      CHECK_GE(size, 0) << spec.name;
      overflow |= __builtin_mul_overflow(info.elements, size, &info.elements);
    }
    int64_t bits = 0;
    overflow |= __builtin_mul_overflow(info.elements, BitsOf(spec.dtype), &bits);
    if (overflow || bits % 8 != 0) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", spec.name,
                                                     "\": ", std::string(NameOf(spec.dtype)), " ",
                                                     ShapeText(spec.shape), " cannot be stored"));
    }
    info.bytes = bits / 8;
    tensors.push_back(std::move(info));
  }
  std::sort(tensors.begin(), tensors.end(), [](const TensorInfo& a, const TensorInfo& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  int64_t position = 0;
  for (TensorInfo& info : tensors) {
    info.begin = position;
    position += info.bytes;
  }
  return tensors;
}

std::string HeaderText(const std::vector<TensorInfo>& tensors, const std::map<std::string, std::string>& metadata) {
  std::string text = "{";
  if (!metadata.empty()) {
    absl::StrAppend(&text, "\"__metadata__\":{");
    for (const auto& [key, value] : metadata) {
      absl::StrAppend(&text, text.back() == '{' ? "" : ",", Quoted(key), ":", Quoted(value));
    }
    absl::StrAppend(&text, "}");
  }
  for (const TensorInfo& tensor : tensors) {
    absl::StrAppend(&text, text.size() == 1 ? "" : ",", Quoted(tensor.name), ":{\"dtype\":\"",
                    std::string(NameOf(tensor.dtype)), "\",\"shape\":[", absl::StrJoin(tensor.shape, ","),
                    "],\"data_offsets\":[", tensor.begin, ",", tensor.begin + tensor.bytes, "]}");
  }
  text += "}";
  text.append((8 - text.size() % 8) % 8, ' ');
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(
    const std::string& path, const std::vector<TensorSpec>& tensors,
    const std::map<std::string, std::string>& metadata) {
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter());
  ASSIGN_OR_RETURN(writer->tensors_, LayOut(path, tensors));
  for (const TensorInfo& tensor : writer->tensors_) {
    if (!writer->index_.emplace(tensor.name, writer->index_.size()).second) {
      return absl::InvalidArgumentError(absl::StrCat(path, ": tensor \"", tensor.name, "\" is given twice"));
    }
    writer->data_bytes_ += tensor.bytes;
  }
  writer->written_.resize(tensors.size());
  const std::string header = HeaderText(writer->tensors_, metadata);
  writer->data_begin_ = 8 + static_cast<int64_t>(header.size());
  RETURN_IF_ERROR(writer->file_.Create(path));
  const uint64_t header_bytes = header.size();
  RETURN_IF_ERROR(writer->file_.WriteAt(0, &header_bytes, 8));
  RETURN_IF_ERROR(writer->file_.WriteAt(8, header.data(), static_cast<int64_t>(header.size())));
  return writer;
}

absl::Status SafetensorsWriter::Append(std::string_view name, const void* data, int64_t bytes) {
  CHECK(file_.is_open()) << "after Finish";
  const auto found = index_.find(std::string(name));
  CHECK(found != index_.end()) << "undeclared tensor " << name;
  const TensorInfo& tensor = tensors_[found->second];
  int64_t& written = written_[found->second];
  CHECK_LE(bytes, tensor.bytes - written) << name;
  RETURN_IF_ERROR(file_.WriteAt(data_begin_ + tensor.begin + written, data, bytes));
  written += bytes;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::AppendFloats(std::string_view name, ConstVector values) {
  const auto found = index_.find(std::string(name));
  CHECK(found != index_.end()) << "undeclared tensor " << name;
  const TensorDType dtype = tensors_[found->second].dtype;
  if (dtype == TensorDType::kF32) return Append(name, values.data, values.size * 4);
  CHECK(dtype == TensorDType::kBF16 || dtype == TensorDType::kF16) << name;
  uint16_t narrow[16384];
  for (int64_t done = 0; done < values.size;) {
    const int64_t chunk = std::min<int64_t>(values.size - done, std::size(narrow));
    for (int64_t i = 0; i < chunk; ++i) {
      const float value = values[done + i];
      narrow[i] = dtype == TensorDType::kBF16 ? FloatToBF16(value) : FloatToF16(value);
    }
    RETURN_IF_ERROR(Append(name, narrow, chunk * 2));
    done += chunk;
  }
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  CHECK(file_.is_open()) << "finished twice";
  for (size_t i = 0; i < tensors_.size(); ++i) CHECK_EQ(written_[i], tensors_[i].bytes) << tensors_[i].name;
  return file_.Finish();
}

}  // namespace thimble
