// A tiny model of tests/golden/decoder with what transformers and peft computed from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/strip.h"
#include "data/file.h"
#include "data/tensor_file.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "ops/ternary_storage.h"
#include "trainer/engine.h"

namespace thimble {

inline std::filesystem::path GoldenFolder(const std::string& name) {
  return std::filesystem::path(THIMBLE_SOURCE_DIR) / "tests/golden/decoder" / name;
}

inline std::vector<float> ReadFloats(const TensorFile& file, const std::string& name) {
  const TensorInfo* info = file.Find(name);
  if (info == nullptr) return {};
  std::vector<float> values(info->elements);
  EXPECT_TRUE(file.ReadFloats(*info, 0, info->elements, values.data()).ok());
  return values;
}

class GoldenModel {
 public:
  explicit GoldenModel(const std::string& name) {
    const std::filesystem::path folder = GoldenFolder(name);
    const auto config = ParseDecoderConfig(ReadJson(folder / "config.json"), (folder / "config.json").string());
    EXPECT_TRUE(config.ok()) << config.status();
    AdapterOptions adapter;
    const bool full = !std::filesystem::exists(folder / "adapter");
    if (!full) {
      const nlohmann::json lora = ReadJson(folder / "adapter" / "adapter_config.json");
      adapter.rank = lora["r"];
      adapter.alpha = lora["lora_alpha"];
      adapter.rslora = lora["use_rslora"];
      adapter.dora = lora["use_dora"];
      adapter.rank_pattern = lora["rank_pattern"].get<std::map<std::string, int64_t>>();
      adapter.alpha_pattern = lora["alpha_pattern"].get<std::map<std::string, double>>();
      if (lora.contains("layers_to_transform") && !lora["layers_to_transform"].is_null()) {
        adapter.layers = lora["layers_to_transform"].get<std::vector<int64_t>>();
      }
      adapter.targets = lora["target_modules"].get<std::vector<std::string>>();
    }
    const bool ternary = config->ternary;
    const StorageOf storage = [ternary](const std::string&, int64_t rows, int64_t cols, bool linear) {
      if (linear && ternary) return WeightStorage{Format::kTernary, TernaryBytes(rows, cols)};
      return WeightStorage{Format::kF32, rows * cols * 4};
    };
    auto decoder = DeclareDecoder(*config, adapter, full, Compute::kF32, storage, &store_);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    decoder_ = std::move(*decoder);
    DeclareOptimizerState({}, &store_);
    store_.Allocate();
    Load((folder / "model.safetensors").string());
    if (!full) Load((folder / "adapter" / "adapter_model.safetensors").string());
    auto expected = TensorFile::Open((folder / "expected.safetensors").string());
    EXPECT_TRUE(expected.ok()) << expected.status();
    expected_ = std::move(*expected);
    for (const char* ids : {"ids.0", "ids.1"}) AppendSequence(ids);
  }

  Engine MakeEngine(SavePolicy policy) {
    EngineOptions options;
    options.activations = policy;
    options.max_tokens = static_cast<int64_t>(batch_.tokens.size());
    options.optimizer.weight_decay = 0.01;
    options.optimizer.decay_all = true;
    return Engine(&decoder_, &store_, options);
  }

  Store& store() { return store_; }
  const Decoder& decoder() const { return decoder_; }
  const TensorFile& expected() const { return *expected_; }
  // Both sequences as one batch of two samples.
  const Batch& batch() const { return batch_; }
  float inverse() const { return 1.0f / static_cast<float>(batch_.num_targets); }

 private:
  static nlohmann::json ReadJson(const std::filesystem::path& path) {
    const auto text = ReadFile(path.string());
    return text.ok() ? nlohmann::json::parse(*text) : nlohmann::json();
  }

  void Load(const std::string& path) {
    const auto file = TensorFile::Open(path);
    ASSERT_TRUE(file.ok()) << file.status();
    for (const TensorInfo& info : (*file)->tensors()) {
      const StoreId id = store_.Find(std::string(absl::StripPrefix(info.name, "base_model.model.")));
      ASSERT_GE(id, 0) << info.name;
      if (store_.entry(id).view.format == Format::kTernary) {
        std::vector<float> masters(info.elements);
        ASSERT_TRUE((*file)->ReadFloats(info, 0, info.elements, masters.data()).ok());
        auto codes = std::make_shared<QuantizedWeight>(
            QuantizeTernary({masters.data(), store_.entry(id).rows, store_.entry(id).cols}));
        ASSERT_TRUE(store_.Bind(id, codes->View(), codes).ok());
        continue;
      }
      ASSERT_TRUE((*file)->ReadFloats(info, 0, info.elements, store_.matrix(id).data).ok());
    }
  }

  void AppendSequence(const char* name) {
    const TensorInfo* info = expected_->Find(name);
    std::vector<int64_t> ids(info->elements);
    ASSERT_TRUE(expected_->ReadBytes(*info, 0, info->bytes, ids.data()).ok());
    const int32_t start = static_cast<int32_t>(batch_.tokens.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      batch_.tokens.push_back(static_cast<int32_t>(ids[i]));
      batch_.positions.push_back(static_cast<int32_t>(i));
      batch_.starts.push_back(start);
      batch_.targets.push_back(i + 1 < ids.size() ? static_cast<int32_t>(ids[i + 1]) : -100);
    }
    batch_.num_targets += static_cast<int64_t>(ids.size()) - 1;
  }

  Store store_;
  Decoder decoder_;
  std::unique_ptr<TensorFile> expected_;
  Batch batch_;
};

// Greatest difference over the greatest magnitude; NaN when a difference is NaN.
inline double RelativeDifference(const std::vector<float>& expected, const float* found) {
  double difference = 0;
  double magnitude = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const double apart = std::abs(static_cast<double>(expected[i]) - found[i]);
    if (std::isnan(apart)) return apart;
    difference = std::max(difference, apart);
    magnitude = std::max(magnitude, std::abs(static_cast<double>(expected[i])));
  }
  return magnitude == 0 ? difference : difference / magnitude;
}

}  // namespace thimble
