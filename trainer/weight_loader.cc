#include "trainer/weight_loader.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "data/stored_weight.h"
#include "data/ternary_weight.h"
#include "ops/check.h"
#include "ops/decode_blocks.h"
#include "ops/ternary_storage.h"

namespace thimble {
namespace {

constexpr int64_t kChunkElements = int64_t{1} << 20;

absl::Status NotFinite(const TensorRef& tensor) {
  return absl::InvalidArgumentError(
      absl::StrCat(tensor.file->path(), ": tensor ", tensor.info->name,
                   " holds a NaN or an infinity; the file is damaged or the model diverged"));
}

bool AllFinite(ConstVector values) {
  return std::all_of(values.data, values.data + values.size, [](float v) { return std::isfinite(v); });
}

// Calls use(values) on consecutive pieces of a tensor, as f32.
template <typename Use>
absl::Status StreamFloats(const TensorRef& tensor, const Use& use) {
  std::vector<float> chunk(std::min(kChunkElements, tensor.info->elements));
  for (int64_t first = 0; first < tensor.info->elements; first += kChunkElements) {
    const int64_t count = std::min(kChunkElements, tensor.info->elements - first);
    RETURN_IF_ERROR(tensor.file->ReadFloats(*tensor.info, first, count, chunk.data()));
    const ConstVector values(chunk.data(), count);
    if (!AllFinite(values)) return NotFinite(tensor);
    use(first, values);
  }
  return absl::OkStatus();
}

class WeightLoader {
 public:
  WeightLoader(const ModelFolder& folder, const QuantizationOptions& quantization, Store* store,
               const std::string& prefix = "")
      : folder_(folder), quantization_(quantization), store_(*store), prefix_(prefix) {}

  // The tensor of an entry, with the shape that the configuration says and of a type that can be read.
  absl::StatusOr<TensorRef> Require(const StoreEntry& entry) {
    const std::string name = TensorName(entry);
    used_.insert(name);
    std::vector<int64_t> shape = {entry.rows, entry.cols};
    if (entry.rows == 1 && !IsMatrix(name)) shape = {entry.cols};
    ASSIGN_OR_RETURN(TensorRef tensor, folder_.Require(name, shape));
    const TensorDType dtype = tensor.info->dtype;
    if (!FormatOf(dtype)) {
      return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": tensor ", name,
                                                     ": expected F32, BF16, F16 or a block type, found ",
                                                     std::string(NameOf(dtype))));
    }
    return tensor;
  }

  absl::Status Load(StoreId id) {
    const StoreEntry& entry = store_.entry(id);
    if (HasStoredWeight(folder_, TensorName(entry))) return LoadAlreadyQuantised(id);
    if (HoldsTernary(folder_, TensorName(entry))) return LoadTernary(id);
    ASSIGN_OR_RETURN(const TensorRef tensor, Require(entry));
    if (entry.view.format == Format::kTernary) return Ternarize(id, tensor);
    if (HasScales(entry.view.format)) return Quantise(id, tensor);
    if (IsBlockFormat(entry.view.format)) return KeepBlocks(id, tensor);
    if (entry.reader != nullptr) return StreamByRows(id, tensor);
    if (entry.view.format == Format::kF32) return ReadInto(id, tensor);
    return Keep16Bit(id, tensor);
  }

  absl::Status CheckNothingLeft() const {
    for (const TensorRef& tensor : folder_.tensors()) {
      const std::string& name = tensor.info->name;
      // Old checkpoints carry the rotary frequencies, which follow from the configuration.
      if (used_.contains(name) || absl::EndsWith(name, "rotary_emb.inv_freq")) continue;
      return absl::InvalidArgumentError(absl::StrCat(tensor.file->path(), ": unexpected tensor ", name,
                                                     ": the model of its configuration has no place for it"));
    }
    return absl::OkStatus();
  }

  void MarkUsed(const std::string& name) { used_.insert(name); }

 private:
  std::string TensorName(const StoreEntry& entry) const { return entry.name.substr(prefix_.size()); }
  static bool IsMatrix(const std::string& name) {
    return !absl::StrContains(name, "norm.weight") && !absl::EndsWith(name, ".bias");
  }

  absl::Status LoadAlreadyQuantised(StoreId id) {
    const StoreEntry& entry = store_.entry(id);
    const std::string tensor = TensorName(entry);
    used_.insert(tensor);
    for (const std::string& name : StoredParts(folder_, tensor)) used_.insert(name);
    ASSIGN_OR_RETURN(QuantizedWeight read, ReadStoredWeight(folder_, tensor));
    if (read.rows != entry.rows || read.cols != entry.cols) {
      return absl::InvalidArgumentError(absl::StrCat(folder_.path(), ": tensor ", tensor, ": expected shape ",
                                                     ShapeText({entry.rows, entry.cols}), ", found ",
                                                     ShapeText({read.rows, read.cols})));
    }
    if (!HasScales(entry.view.format)) {
      return absl::InvalidArgumentError(absl::StrCat(folder_.path(), ": tensor ", tensor,
                                                     ": is quantised and cannot be trained itself: train an adapter"));
    }
    return BindQuantised(id, std::move(read));
  }

  // As they are, or, where the weight trains, as masters that quantise to the codes and the scale of the folder.
  absl::Status LoadTernary(StoreId id) {
    const StoreEntry& entry = store_.entry(id);
    const std::string name = TensorName(entry);
    used_.insert(name);
    used_.insert(TernaryScaleName(name));
    ASSIGN_OR_RETURN(QuantizedWeight stored, ReadTernary(folder_, name, entry.rows, entry.cols));
    if (entry.view.format == Format::kTernary) return BindQuantised(id, std::move(stored));
    const Matrix masters = store_.matrix(id);
    stored.absmax[0] *= MasterFactor(stored.View());
    for (int64_t r = 0; r < entry.rows; ++r) DecodeRow(stored.View(), r, 0, entry.cols, masters.row(r));
    return absl::OkStatus();
  }

  absl::Status Ternarize(StoreId id, const TensorRef& tensor) {
    std::vector<float> masters(tensor.info->elements);
    RETURN_IF_ERROR(ReadFloats(tensor, masters.data()));
    const StoreEntry& entry = store_.entry(id);
    return BindQuantised(id, QuantizeTernary({masters.data(), entry.rows, entry.cols}));
  }

  absl::Status BindQuantised(StoreId id, QuantizedWeight weight) {
    auto owned = std::make_shared<QuantizedWeight>(std::move(weight));
    const WeightView view = owned->View();
    return store_.Bind(id, view, std::move(owned));
  }

  absl::Status Quantise(StoreId id, const TensorRef& tensor) {
    const QuantizationOptions& q = quantization_;
    ASSIGN_OR_RETURN(BnbWeight weight,
                     QuantizeToStored(tensor, {store_.entry(id).view.format, q.block_size, q.double_quant}));
    return BindQuantised(id, std::move(weight.weight));
  }

  absl::Status ReadInto(StoreId id, const TensorRef& tensor) {
    const StoreEntry& entry = store_.entry(id);
    if (entry.slot < 0) return ReadFloats(tensor, store_.matrix(id).data);
    auto floats = std::make_shared<std::vector<float>>(tensor.info->elements);
    RETURN_IF_ERROR(ReadFloats(tensor, floats->data()));
    const WeightView view(floats->data(), entry.rows, entry.cols);
    return store_.Bind(id, view, std::move(floats));
  }

  static absl::Status ReadFloats(const TensorRef& tensor, float* out) {
    return StreamFloats(tensor, [out](int64_t first, ConstVector values) {
      std::memcpy(out + first, values.data, sizeof(float) * values.size);
    });
  }

  // A chunk at a time to the weight tier.
  absl::Status StreamByRows(StoreId id, const TensorRef& tensor) {
    const Format format = store_.entry(id).view.format;
    const int64_t value_bytes = StoredBytes(format, 1);
    std::vector<uint16_t> bits;
    absl::Status written;
    RETURN_IF_ERROR(StreamFloats(tensor, [&](int64_t first, ConstVector values) {
      const void* bytes = values.data;
      if (format != Format::kF32) {
        bits.resize(values.size);
        for (int64_t i = 0; i < values.size; ++i) {
          bits[i] = format == Format::kF16 ? FloatToF16(values[i]) : FloatToBF16(values[i]);
        }
        bytes = bits.data();
      }
      if (written.ok()) written = store_.WriteStreamed(id, first * value_bytes, bytes, values.size * value_bytes);
    }));
    return written;
  }

  // As they are, rows in order; an entry streamed by rows goes to the weight tier a chunk at a time.
  absl::Status KeepBlocks(StoreId id, const TensorRef& tensor) {
    const StoreEntry& entry = store_.entry(id);
    const bool by_rows = entry.reader != nullptr;
    const FormatInfo& info = InfoOf(entry.view.format);
    const int64_t chunk = kChunkElements / info.values_per_block;  // blocks
    const int64_t blocks = tensor.info->elements / info.values_per_block;
    auto bytes =
        std::make_shared<std::vector<uint8_t>>((by_rows ? std::min(chunk, blocks) : blocks) * info.bytes_per_block);
    std::vector<float> values(std::min(chunk, blocks) * info.values_per_block);
    for (int64_t first = 0; first < blocks; first += chunk) {
      const int64_t count = std::min(chunk, blocks - first);
      const int64_t offset = first * info.bytes_per_block, length = count * info.bytes_per_block;
      uint8_t* at = bytes->data() + (by_rows ? 0 : offset);
      RETURN_IF_ERROR(tensor.file->ReadBytes(*tensor.info, offset, length, at));
      DecodeBlocks(entry.view.format, at, count, values.data());
      if (!AllFinite(ConstVector(values.data(), count * info.values_per_block))) return NotFinite(tensor);
      if (by_rows) RETURN_IF_ERROR(store_.WriteStreamed(id, offset, at, length));
    }
    if (by_rows) return absl::OkStatus();
    WeightView view = entry.view;
    view.data = bytes->data();
    return store_.Bind(id, view, std::move(bytes));
  }

  absl::Status Keep16Bit(StoreId id, const TensorRef& tensor) {
    auto bits = std::make_shared<std::vector<uint16_t>>(tensor.info->elements);
    const bool f16 = store_.entry(id).view.format == Format::kF16;
    RETURN_IF_ERROR(StreamFloats(tensor, [&](int64_t first, ConstVector values) {
      for (int64_t i = 0; i < values.size; ++i) {
        (*bits)[first + i] = f16 ? FloatToF16(values[i]) : FloatToBF16(values[i]);
      }
    }));
    WeightView view = store_.entry(id).view;
    view.data = bits->data();
    return store_.Bind(id, view, std::move(bits));
  }

  const ModelFolder& folder_;
  const QuantizationOptions& quantization_;
  Store& store_;
  std::string prefix_;  // of the entries' names, not of the tensors'
  absl::flat_hash_set<std::string> used_;
};

bool IsModelEntry(const StoreEntry& entry) {
  const bool kind = entry.category == Category::kWeights || entry.category == Category::kParameters;
  return kind && !absl::StrContains(entry.name, ".lora_");
}

// Whether two tensors hold the same bytes.
absl::StatusOr<bool> SameBytes(const TensorRef& a, const TensorRef& b) {
  if (a.info->bytes != b.info->bytes || a.info->dtype != b.info->dtype) return false;
  std::vector<char> left(std::min<int64_t>(a.info->bytes, kChunkElements));
  std::vector<char> right(left.size());
  for (int64_t at = 0; at < a.info->bytes; at += kChunkElements) {
    const int64_t count = std::min(kChunkElements, a.info->bytes - at);
    RETURN_IF_ERROR(a.file->ReadBytes(*a.info, at, count, left.data()));
    RETURN_IF_ERROR(b.file->ReadBytes(*b.info, at, count, right.data()));
    if (std::memcmp(left.data(), right.data(), count) != 0) return false;
  }
  return true;
}

}  // namespace

absl::StatusOr<DecoderConfig> ReadDecoderConfig(const ModelFolder& folder) {
  ASSIGN_OR_RETURN(DecoderConfig config, ParseDecoderConfig(folder.config(), folder.config_place()));
  const TensorRef* head = folder.Find("lm_head.weight");
  const TensorRef* embedding = folder.Find("model.embed_tokens.weight");
  if (config.tie_embeddings && head != nullptr && embedding != nullptr) {
    ASSIGN_OR_RETURN(const bool same, SameBytes(*head, *embedding));
    config.tie_embeddings = same;
  }
  return config;
}

absl::Status LoadWeights(const ModelFolder& folder, const Decoder& decoder, const QuantizationOptions& quantization,
                         Store* store) {
  WeightLoader loader(folder, quantization, store, decoder.prefix);
  for (StoreId id = 0; id < static_cast<StoreId>(store->size()); ++id) {
    const StoreEntry& entry = store->entry(id);
    const bool own = (entry.name.rfind(kTeacherPrefix, 0) == 0) == (decoder.prefix == kTeacherPrefix);
    if (own && IsModelEntry(entry)) RETURN_IF_ERROR(loader.Load(id));
  }
  if (decoder.head == decoder.embedding) loader.MarkUsed("lm_head.weight");
  return loader.CheckNothingLeft();
}

absl::Status CheckTensors(const ModelFolder& folder) {
  ASSIGN_OR_RETURN(const DecoderConfig config, ReadDecoderConfig(folder));
  Store store;
  ASSIGN_OR_RETURN(const Decoder decoder,
                   DeclareDecoder(config, AdapterOptions(), /*train_weights=*/false, Compute::kF32,
                                  StorageFor(folder, QuantizationOptions()), &store));
  WeightLoader loader(folder, QuantizationOptions(), &store);
  for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
    if (HoldsTernary(folder, store.entry(id).name)) {
      loader.MarkUsed(store.entry(id).name);
      loader.MarkUsed(TernaryScaleName(store.entry(id).name));
      continue;
    }
    RETURN_IF_ERROR(loader.Require(store.entry(id)).status());
  }
  if (decoder.head == decoder.embedding) loader.MarkUsed("lm_head.weight");
  return loader.CheckNothingLeft();
}

std::string FormatSummary(const Store& store) {
  struct Sum {
    int64_t tensors = 0;
    int64_t bytes = 0;
  };
  std::map<int, Sum> sums;
  for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
    if (!IsModelEntry(store.entry(id))) continue;
    Sum& sum = sums[-static_cast<int>(store.entry(id).view.format)];  // 4-bit formats first
    ++sum.tensors;
    sum.bytes += store.entry(id).bytes;
  }
  std::string text;
  for (const auto& [format, sum] : sums) {
    absl::StrAppendFormat(&text, "%s%s: %d tensor%s, %.1f MiB", text.empty() ? "" : "; ",
                          std::string(InfoOf(static_cast<Format>(-format)).name), sum.tensors,
                          sum.tensors == 1 ? "" : "s", static_cast<double>(sum.bytes) / (1 << 20));
  }
  return text;
}

}  // namespace thimble
