// A small random decoder made in the test itself, and random batches for it.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "ops/random.h"
#include "trainer/engine.h"

namespace thimble {

inline DecoderConfig TinyConfig() {
  DecoderConfig config;
  config.model_type = "llama";
  config.hidden_dim = 32;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.intermediate_dim = 48;
  config.vocab_size = 67;
  config.max_position = 512;
  config.rms_norm_eps = 1e-5f;
  config.windows.assign(config.num_layers, 0);
  config.eos_token_ids = {2};
  config.bos_token_id = 1;
  return config;
}

inline AdapterOptions TinyAdapter(bool dora = false, double dropout = 0) {
  AdapterOptions adapter;
  adapter.rank = 3;
  adapter.alpha = 6;
  adapter.dora = dora;
  adapter.dropout = dropout;
  adapter.targets = LinearNames();
  adapter.seed = 11;
  return adapter;
}

inline WeightStorage PlainF32(const std::string&, int64_t rows, int64_t cols, bool) {
  return WeightStorage{Format::kF32, rows * cols * 4};
}

// All weights f32 and random; an adapter's B is not zero, so that every gradient is alive.
class TinyModel {
 public:
  explicit TinyModel(const DecoderConfig& config, const AdapterOptions& adapter = {},
                     const OptimizerOptions& optimizer = {})
      : optimizer_(optimizer) {
    auto declared = DeclareDecoder(config, adapter, adapter.rank == 0, Compute::kF32, PlainF32, &store_);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder_ = std::move(*declared);
    DeclareOptimizerState(optimizer_, &store_);
    store_.Allocate();
    for (StoreId id = 0; id < static_cast<StoreId>(store_.size()); ++id) {
      const StoreEntry& entry = store_.entry(id);
      if (entry.category != Category::kWeights && entry.category != Category::kParameters) continue;
      const bool near_one = absl::StrContains(entry.name, "norm") || absl::StrContains(entry.name, "magnitude");
      RandomNormal(5, static_cast<uint64_t>(id), 0, near_one ? 1.0f : 0.0f, 0.1f, store_.vector(id));
    }
  }

  Engine MakeEngine(int64_t max_tokens, const SavePlan& policy = SavePolicy::kKeep,
                    const LinearCrossEntropyOptions& loss = {}) {
    EngineOptions options;
    options.activations = policy;
    options.max_tokens = max_tokens;
    options.loss = loss;
    options.optimizer = optimizer_;
    return Engine(&decoder_, &store_, options);
  }

  Store& store() { return store_; }
  const Store& store() const { return store_; }
  const Decoder& decoder() const { return decoder_; }

 private:
  OptimizerOptions optimizer_;
  Store store_;
  Decoder decoder_;
};

// One sample of random tokens, each of which but the last predicts the next.
inline Batch RandomSample(int64_t length, uint64_t seed, int64_t vocab_size) {
  std::vector<uint32_t> bits(length);
  RandomBits(seed, 0, 0, length, bits.data());
  Batch batch;
  for (int64_t t = 0; t < length; ++t) {
    batch.tokens.push_back(static_cast<int32_t>(bits[t] % static_cast<uint32_t>(vocab_size)));
    batch.positions.push_back(static_cast<int32_t>(t));
    batch.starts.push_back(0);
    if (t > 0) batch.targets.push_back(batch.tokens.back());
  }
  batch.targets.push_back(-100);
  batch.num_targets = length - 1;
  batch.num_samples = 1;
  return batch;
}

// Samples one after another in one micro-batch.
inline Batch Packed(const std::vector<Batch>& samples) {
  Batch packed;
  for (const Batch& sample : samples) {
    const int32_t start = static_cast<int32_t>(packed.tokens.size());
    for (size_t t = 0; t < sample.tokens.size(); ++t) {
      packed.tokens.push_back(sample.tokens[t]);
      packed.positions.push_back(sample.positions[t]);
      packed.starts.push_back(start + sample.starts[t]);
      packed.targets.push_back(sample.targets[t]);
    }
    packed.num_targets += sample.num_targets;
    packed.num_samples += sample.num_samples;
  }
  return packed;
}

// Gradients of all parameters in the order of their declaration.
inline std::vector<float> AllGradients(const Store& store) {
  std::vector<float> all;
  for (StoreId id : store.Trainable()) {
    const Vector gradient = store.vector(store.entry(id).gradient);
    all.insert(all.end(), gradient.data, gradient.data + gradient.size);
  }
  return all;
}

// Gradients of micro-batches accumulated with one divisor; `loss` gets the sum over targets.
inline std::vector<float> GradientsOf(Engine* engine, const std::vector<Batch>& batches, double* loss = nullptr,
                                      uint64_t dropout_counter = 0) {
  int64_t targets = 0;
  for (const Batch& batch : batches) targets += batch.num_targets;
  const float inverse = targets == 0 ? 0.0f : 1.0f / static_cast<float>(targets);
  engine->ZeroGradients();
  double sum = 0;
  for (const Batch& batch : batches) sum += engine->TrainMicroStep(batch, inverse, dropout_counter++);
  if (loss != nullptr) *loss = sum;
  return AllGradients(engine->store());
}

// [tokens, vocab] in double from final hidden states.
inline std::vector<float> LogitsOf(ConstMatrix hidden, const WeightView& head) {
  std::vector<float> logits(hidden.rows * head.rows);
  std::vector<float> row(head.cols);
  for (int64_t v = 0; v < head.rows; ++v) {
    DecodeRow(head, v, 0, head.cols, row.data());
    for (int64_t t = 0; t < hidden.rows; ++t) {
      double sum = 0;
      for (int64_t i = 0; i < head.cols; ++i) sum += static_cast<double>(hidden(t, i)) * row[i];
      logits[t * head.rows + v] = static_cast<float>(sum);
    }
  }
  return logits;
}

inline std::vector<float> LogitsOf(Engine* engine, const Batch& batch) {
  return LogitsOf(engine->Hidden(batch), engine->store().entry(engine->decoder().head).view);
}

// An empty folder that is removed with the test.
class TempFolder {
 public:
  TempFolder() {
    std::string pattern = testing::TempDir() + "thimbleXXXXXX";
    path_ = ::mkdtemp(pattern.data());
  }
  ~TempFolder() {
    std::error_code error;
    std::filesystem::remove_all(path_, error);
  }
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace thimble
