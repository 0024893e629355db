#include "data/gguf_writer.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "ops/check.h"
#include "ops/quantize_blocks.h"

namespace thimble {
namespace {

constexpr size_t kMaxNameBytes = 63;

template <typename T>
void AppendNumber(T value, std::string* out) {
  out->append(reinterpret_cast<const char*>(&value), sizeof(value));
}

void AppendString(const std::string& text, std::string* out) {
  AppendNumber(static_cast<uint64_t>(text.size()), out);
  *out += text;
}

// Value k of a list.
void AppendElement(const GgufValue& value, size_t k, std::string* out) {
  switch (value.type) {
    case GgufType::kU8:
    case GgufType::kI8:
    case GgufType::kBool:
      return AppendNumber(static_cast<uint8_t>(value.integers[k]), out);
    case GgufType::kU16:
    case GgufType::kI16:
      return AppendNumber(static_cast<uint16_t>(value.integers[k]), out);
    case GgufType::kU32:
    case GgufType::kI32:
      return AppendNumber(static_cast<uint32_t>(value.integers[k]), out);
    case GgufType::kU64:
    case GgufType::kI64:
      return AppendNumber(value.integers[k], out);
    case GgufType::kF32:
      return AppendNumber(static_cast<float>(value.floats[k]), out);
    case GgufType::kF64:
      return AppendNumber(value.floats[k], out);
    case GgufType::kString:
      return AppendString(value.strings[k], out);
    case GgufType::kArray:
      CHECK(false) << "arrays of arrays";
  }
}

std::string HeaderText(const std::vector<GgufEntry>& entries, const std::vector<TensorInfo>& tensors) {
  std::string text = "GGUF";
  AppendNumber(uint32_t{3}, &text);
  AppendNumber(static_cast<uint64_t>(tensors.size()), &text);
  AppendNumber(static_cast<uint64_t>(entries.size()), &text);
  for (const GgufEntry& entry : entries) {
    AppendString(entry.key, &text);
    const GgufValue& value = entry.value;
    if (value.is_array) AppendNumber(static_cast<uint32_t>(GgufType::kArray), &text);
    AppendNumber(static_cast<uint32_t>(value.type), &text);
    if (value.is_array) AppendNumber(static_cast<uint64_t>(value.size()), &text);
    for (int64_t k = 0; k < value.size(); ++k) AppendElement(value, static_cast<size_t>(k), &text);
  }
  for (const TensorInfo& tensor : tensors) {
    AppendString(tensor.name, &text);
    AppendNumber(static_cast<uint32_t>(tensor.shape.size()), &text);
    for (auto size = tensor.shape.rbegin(); size != tensor.shape.rend(); ++size) {
      AppendNumber(static_cast<uint64_t>(*size), &text);
    }
    AppendNumber(GgmlTypeOf(tensor.dtype).value(), &text);
    AppendNumber(static_cast<uint64_t>(tensor.begin), &text);
  }
  text.append((kGgufAlignment - text.size() % kGgufAlignment) % kGgufAlignment, '\0');
  return text;
}

GgufEntry EntryOf(std::string key, GgufType type, bool is_array) {
  GgufEntry entry;
  entry.key = std::move(key);
  entry.value.type = type;
  entry.value.is_array = is_array;
  return entry;
}

int64_t Padded(int64_t bytes) { return (bytes + kGgufAlignment - 1) / kGgufAlignment * kGgufAlignment; }

}  // namespace

GgufEntry GgufInteger(std::string key, GgufType type, int64_t value) {
  GgufEntry entry = EntryOf(std::move(key), type, /*is_array=*/false);
  entry.value.integers = {value};
  return entry;
}
GgufEntry GgufFloat(std::string key, double value) {
  GgufEntry entry = EntryOf(std::move(key), GgufType::kF32, /*is_array=*/false);
  entry.value.floats = {value};
  return entry;
}
GgufEntry GgufBool(std::string key, bool value) { return GgufInteger(std::move(key), GgufType::kBool, value ? 1 : 0); }
GgufEntry GgufString(std::string key, std::string value) {
  GgufEntry entry = EntryOf(std::move(key), GgufType::kString, /*is_array=*/false);
  entry.value.strings.push_back(std::move(value));
  return entry;
}
GgufEntry GgufStrings(std::string key, std::vector<std::string> values) {
  GgufEntry entry = EntryOf(std::move(key), GgufType::kString, /*is_array=*/true);
  entry.value.strings = std::move(values);
  return entry;
}
GgufEntry GgufIntegers(std::string key, GgufType type, std::vector<int64_t> values) {
  GgufEntry entry = EntryOf(std::move(key), type, /*is_array=*/true);
  entry.value.integers = std::move(values);
  return entry;
}
GgufEntry GgufFloats(std::string key, std::vector<double> values) {
  GgufEntry entry = EntryOf(std::move(key), GgufType::kF32, /*is_array=*/true);
  entry.value.floats = std::move(values);
  return entry;
}

absl::Status GgufWriter::LayOut(const std::vector<GgufTensorSpec>& tensors) {
  const auto invalid = [&](const GgufTensorSpec& spec, const std::string& what) {
    return absl::InvalidArgumentError(absl::StrCat(path_, ": tensor \"", spec.name, "\": ", what));
  };
  int64_t next = 0;
  for (const GgufTensorSpec& spec : tensors) {
    TensorInfo info;
    info.name = spec.name;
    info.dtype = spec.dtype;
    info.shape = spec.shape;
    info.head_rows = spec.head_rows;
    info.elements = 1;
    for (const int64_t size : spec.shape) info.elements *= size;
    if (spec.name.size() > kMaxNameBytes) return invalid(spec, "a name in a GGUF file has at most 63 bytes");
    if (!index_.emplace(spec.name, tensors_.size()).second) return invalid(spec, "is given twice");
    if (!GgmlTypeOf(spec.dtype)) return invalid(spec, absl::StrCat("no GGUF type: ", std::string(NameOf(spec.dtype))));
    const TypeSize size = SizeOf(spec.dtype);
    if (spec.shape.back() % size.elements != 0) {
      return invalid(spec, absl::StrCat("rows of ", spec.shape.back(), " are no whole blocks of ",
                                        std::string(NameOf(spec.dtype))));
    }
    info.bytes = info.elements / size.elements * size.bytes;
    info.begin = next;
    next += Padded(info.bytes);
    tensors_.push_back(std::move(info));
  }
  written_.resize(tensors_.size());
  file_bytes_ = next;
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<GgufWriter>> GgufWriter::Create(const std::string& path,
                                                               const std::vector<GgufEntry>& entries,
                                                               const std::vector<GgufTensorSpec>& tensors) {
  std::unique_ptr<GgufWriter> writer(new GgufWriter(path));
  RETURN_IF_ERROR(writer->LayOut(tensors));
  const std::string header = HeaderText(entries, writer->tensors_);
  writer->data_begin_ = static_cast<int64_t>(header.size());
  writer->file_bytes_ += writer->data_begin_;
  RETURN_IF_ERROR(writer->file_.Create(path));
  RETURN_IF_ERROR(writer->file_.WriteAt(0, header.data(), writer->data_begin_));
  RETURN_IF_ERROR(writer->file_.Resize(writer->file_bytes_));  // padding is never written
  return writer;
}

absl::Status GgufWriter::Append(std::string_view name, const void* data, int64_t bytes) {
  CHECK(file_.is_open()) << "after Finish";
  const auto found = index_.find(std::string(name));
  CHECK(found != index_.end()) << "undeclared tensor " << name;
  const TensorInfo& tensor = tensors_[found->second];
  int64_t& written = written_[found->second];
  CHECK_LE(bytes, tensor.bytes - written) << name;
  const char* next = static_cast<const char*>(data);
  while (bytes > 0) {
    const int64_t length = tensor.head_rows == 0 ? bytes : std::min(bytes, tensor.BytesToEndOfRow(written));
    RETURN_IF_ERROR(file_.WriteAt(data_begin_ + tensor.begin + tensor.StoredOffset(written), next, length));
    next += length;
    written += length;
    bytes -= length;
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::AppendFloats(std::string_view name, ConstVector values) {
  const auto found = index_.find(std::string(name));
  CHECK(found != index_.end()) << "undeclared tensor " << name;
  const Format format = FormatOf(tensors_[found->second].dtype).value();
  if (format == Format::kF32) return Append(name, values.data, values.size * 4);
  std::vector<uint8_t> stored(static_cast<size_t>(StoredBytes(format, values.size)));
  if (IsBlockFormat(format)) {
    if (QuantizeBlocks(format, values, stored.data()) >= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat(path_, ": tensor \"", std::string(name), "\" holds a NaN or an infinity: not to be quantised"));
    }
  } else {
    for (int64_t i = 0; i < values.size; ++i) {
      const uint16_t bits = format == Format::kBF16 ? FloatToBF16(values[i]) : FloatToF16(values[i]);
      std::copy_n(reinterpret_cast<const uint8_t*>(&bits), 2, stored.data() + 2 * i);
    }
  }
  return Append(name, stored.data(), static_cast<int64_t>(stored.size()));
}

absl::Status GgufWriter::Finish() {
  CHECK(file_.is_open()) << "finished twice";
  for (size_t i = 0; i < tensors_.size(); ++i) CHECK_EQ(written_[i], tensors_[i].bytes) << tensors_[i].name;
  return file_.Finish();
}

}  // namespace thimble
