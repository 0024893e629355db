#include "trainer/init_folder.h"

#include <algorithm>
#include <filesystem>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "data/json_file.h"
#include "ops/check.h"
#include "ops/parallel.h"
#include "ops/random.h"
#include "trainer/decoder.h"
#include "trainer/decoder_config.h"
#include "trainer/store.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kChunk = int64_t{1} << 20;  // elements

struct InitTensor {
  std::string name;
  int64_t rows = 0;
  int64_t cols = 0;
  bool matrix = false;
  float constant = 0;  // of vectors
};

std::vector<InitTensor> TensorsOf(const DecoderConfig& config) {
  Store store;
  const auto decoder = DeclareDecoder(config, AdapterOptions(), /*train_weights=*/false, Compute::kF32,
                                      StorageForShape(Format::kF32, QuantizationOptions()), &store);
  CHECK(decoder.ok()) << decoder.status();
  std::vector<InitTensor> tensors;
  for (StoreId id = 0; id < static_cast<StoreId>(store.size()); ++id) {
    const StoreEntry& entry = store.entry(id);
    const bool norm = entry.name.find("norm.weight") != std::string::npos;
    const bool bias = entry.name.size() > 5 && entry.name.rfind(".bias") == entry.name.size() - 5;
    tensors.push_back({entry.name, entry.rows, entry.cols, !norm && !bias, norm ? 1.0f : 0.0f});
  }
  return tensors;
}

// Rounds to `dtype` in place, so that quantised weights are those of the plain folder.
void RoundTo(TensorDType dtype, Vector values) {
  if (dtype == TensorDType::kF32) return;
  const bool bf16 = dtype == TensorDType::kBF16;
  ParallelRanges(values.size, 1 << 14, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      values[i] = bf16 ? BF16ToFloat(FloatToBF16(values[i])) : F16ToFloat(FloatToF16(values[i]));
    }
  });
}

class FolderFiller {
 public:
  FolderFiller(const InitFolderOptions& options, float deviation, ModelFolderWriter* writer)
      : options_(options), deviation_(deviation), writer_(*writer), chunk_(kChunk) {}

  absl::Status Fill(const InitTensor& tensor, uint64_t stream) {
    if (tensor.matrix && options_.quantize.has_value() && IsDecoderLinear(tensor.name))
      return Quantised(tensor, stream);
    return ForEachChunk(tensor, stream, [&](ConstVector values) { return writer_.AppendFloats(tensor.name, values); });
  }

 private:
  template <typename Use>
  absl::Status ForEachChunk(const InitTensor& tensor, uint64_t stream, const Use& use) {
    const int64_t elements = tensor.rows * tensor.cols;
    for (int64_t first = 0; first < elements; first += kChunk) {
      const Vector values(chunk_.data(), std::min(kChunk, elements - first));
      if (tensor.matrix) {
        RandomNormal(options_.seed, stream, static_cast<uint64_t>(first), 0, deviation_, values);
      } else {
        std::fill(values.data, values.data + values.size, tensor.constant);
      }
      RoundTo(options_.dtype, values);
      RETURN_IF_ERROR(use(values));
    }
    return absl::OkStatus();
  }

  absl::Status Quantised(const InitTensor& tensor, uint64_t stream) {
    const Quantize4BitOptions& how = *options_.quantize;
    WeightQuantizer quantizer(how.format, tensor.rows, tensor.cols, how.block_size, how.double_quant);
    RETURN_IF_ERROR(ForEachChunk(tensor, stream, [&](ConstVector values) {
      quantizer.Push(values);
      return absl::OkStatus();
    }));
    BnbWeight weight;
    weight.dtype = options_.dtype;
    weight.weight = quantizer.Finish();
    return AppendBnbWeight(tensor.name, weight, &writer_);
  }

  const InitFolderOptions& options_;
  float deviation_;
  ModelFolderWriter& writer_;
  std::vector<float> chunk_;
};

nlohmann::json ConfigOf(nlohmann::json config, const InitFolderOptions& options) {
  const char* dtype = options.dtype == TensorDType::kF32   ? "float32"
                      : options.dtype == TensorDType::kF16 ? "float16"
                                                           : "bfloat16";
  if (config.contains("dtype")) config["dtype"] = dtype;
  if (config.contains("torch_dtype") || !config.contains("dtype")) config["torch_dtype"] = dtype;
  if (options.quantize.has_value())
    config["quantization_config"] = QuantizationConfig(*options.quantize, options.dtype);
  return config;
}

std::vector<TensorSpec> SpecsOf(const std::vector<InitTensor>& tensors, const InitFolderOptions& options) {
  std::vector<TensorSpec> specs;
  for (const InitTensor& tensor : tensors) {
    if (tensor.matrix && options.quantize.has_value() && IsDecoderLinear(tensor.name)) {
      for (TensorSpec& spec : BnbSpecs(tensor.name, tensor.rows, tensor.cols, *options.quantize)) {
        specs.push_back(std::move(spec));
      }
    } else if (tensor.matrix) {
      specs.push_back({tensor.name, options.dtype, {tensor.rows, tensor.cols}});
    } else {
      specs.push_back({tensor.name, options.dtype, {tensor.cols}});
    }
  }
  return specs;
}

}  // namespace

absl::StatusOr<TensorCounts> InitModelFolder(const std::string& source, const std::string& out,
                                             const InitFolderOptions& options) {
  std::error_code error;
  const bool folder = fs::is_directory(source, error);
  const std::string path = folder ? (fs::path(source) / "config.json").string() : source;
  ASSIGN_OR_RETURN(const nlohmann::json config, ReadJsonObject(path));
  ASSIGN_OR_RETURN(const DecoderConfig decoder, ParseDecoderConfig(config, path));
  if (config.contains("quantization_config")) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": has a quantization_config, expected the plain model's configuration; remove that key"));
  }
  const std::vector<InitTensor> tensors = TensorsOf(decoder);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<ModelFolderWriter> writer,
      ModelFolderWriter::Create(out, ConfigOf(config, options), SpecsOf(tensors, options), options.max_shard_bytes));
  FolderFiller filler(options, decoder.init_std, writer.get());
  for (size_t i = 0; i < tensors.size(); ++i) RETURN_IF_ERROR(filler.Fill(tensors[i], i));
  if (folder) RETURN_IF_ERROR(writer->CarryFiles(source));
  RETURN_IF_ERROR(writer->Finish());
  ASSIGN_OR_RETURN(const std::unique_ptr<ModelFolder> written, ModelFolder::Open(out));
  return CountTensors(*written);
}

}  // namespace thimble
