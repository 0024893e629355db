// Adapters through a frozen base in ggml's block formats: losses and gradients are those of the same base decoded to
// f32, in memory, streamed from a tier, and with the embedding read by rows.
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "data/gguf_model.h"
#include "data/gguf_writer.h"
#include "gtest/gtest.h"
#include "ops/decode_blocks.h"
#include "ops/quantize_blocks.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

DecoderConfig WideConfig() {
  DecoderConfig config = TinyConfig();
  config.hidden_dim = 256;
  config.head_dim = 64;
  config.intermediate_dim = 256;
  config.tie_embeddings = true;
  return config;
}

std::vector<GgufEntry> Entries(const DecoderConfig& c) {
  const auto u32 = [](const std::string& key, int64_t value) {
    return GgufInteger("llama." + key, GgufType::kU32, value);
  };
  return {GgufString("general.architecture", "llama"),
          u32("context_length", c.max_position),
          u32("embedding_length", c.hidden_dim),
          u32("block_count", c.num_layers),
          u32("feed_forward_length", c.intermediate_dim),
          u32("attention.head_count", c.num_heads),
          u32("attention.head_count_kv", c.num_kv_heads),
          u32("vocab_size", c.vocab_size),
          GgufFloat("llama.attention.layer_norm_rms_epsilon", c.rms_norm_eps)};
}

// Random weights of the tiny model, matrices in `dtype`, or, decoded again, in F32.
std::string WriteBase(const std::string& path, TensorDType dtype, bool decoded) {
  const DecoderConfig config = WideConfig();
  TinyModel model(config);
  const Store& store = model.store();
  std::vector<GgufTensorSpec> specs;
  for (StoreId id : store.Trainable()) {
    const StoreEntry& entry = store.entry(id);
    const bool norm = absl::StrContains(entry.name, "norm");
    GgufTensorSpec spec{
        GgufTensorName(entry.name).value(), decoded || norm ? TensorDType::kF32 : dtype, {entry.cols}, 0};
    if (!norm) spec.shape.insert(spec.shape.begin(), entry.rows);
    const bool rotated = absl::StrContains(entry.name, ".q_proj") || absl::StrContains(entry.name, ".k_proj");
    if (rotated) spec.head_rows = config.head_dim;
    specs.push_back(std::move(spec));
  }
  auto writer = GgufWriter::Create(path, Entries(config), specs).value();
  const Format format = FormatOf(dtype).value();
  for (size_t i = 0; i < specs.size(); ++i) {
    const Vector values = store.vector(store.Trainable()[i]);
    if (decoded && specs[i].shape.size() == 2) {
      std::vector<uint8_t> blocks(StoredBytes(format, values.size));
      EXPECT_EQ(QuantizeBlocks(format, values, blocks.data()), -1);
      DecodeBlocks(format, blocks.data(), values.size / InfoOf(format).values_per_block, values.data);
    }
    EXPECT_TRUE(writer->AppendFloats(specs[i].name, values).ok());
  }
  EXPECT_TRUE(writer->Finish().ok());
  return path;
}

struct Outcome {
  double loss = 0;
  std::vector<float> gradients;
  int64_t weight_bytes = 0;
  std::string formats;
};

Outcome LossAndGradients(const std::string& path, bool streamed) {
  const auto folder = ModelFolder::Open(path).value();
  const DecoderConfig config = ReadDecoderConfig(*folder).value();
  Store store;
  QuantizationOptions four_bit;  // which leaves blocks as they are
  four_bit.format = Format::kNF4;
  const QuantizationOptions as_stored;
  const bool blocks = folder->tensors()[0].info->dtype != TensorDType::kF32;
  const QuantizationOptions& quantization = blocks ? four_bit : as_stored;
  const Decoder decoder = DeclareDecoder(config, TinyAdapter(), /*train_weights=*/false, Compute::kF32,
                                         StorageFor(*folder, quantization), &store)
                              .value();
  if (streamed) {
    StreamLinearLayers(decoder, &store);
    StreamEmbeddings(decoder, &store);
    store.StreamFromHost();
    store.SetWeightTier(MakeHostTier(store.stream_bytes()).value());
  }
  DeclareOptimizerState(OptimizerOptions(), &store);
  store.Allocate();
  EXPECT_TRUE(LoadWeights(*folder, decoder, quantization, &store).ok());
  for (StoreId id : store.Trainable()) RandomNormal(9, static_cast<uint64_t>(id), 0, 0, 0.1f, store.vector(id));
  EngineOptions options;
  options.max_tokens = 64;
  Engine engine(&decoder, &store, options);
  Outcome run;
  run.gradients = GradientsOf(&engine, {RandomSample(40, 3, config.vocab_size)}, &run.loss);
  run.weight_bytes = store.BytesOf(Category::kWeights);
  run.formats = FormatSummary(store);
  return run;
}

TEST(GgufBaseTest, GradientsAreThoseOfTheDecodedBase) {
  TempFolder temp;
  for (const TensorDType dtype : {TensorDType::kQ4K, TensorDType::kQ4_0, TensorDType::kQ6K, TensorDType::kQ8_0,
                                  TensorDType::kTQ2_0, TensorDType::kMXFP4}) {
    SCOPED_TRACE(NameOf(dtype));
    const Outcome exact = LossAndGradients(WriteBase(temp / "decoded.gguf", dtype, true), false);
    const std::string packed = WriteBase(temp / "packed.gguf", dtype, false);
    for (const bool streamed : {false, true}) {
      const Outcome run = LossAndGradients(packed, streamed);
      EXPECT_NEAR(run.loss, exact.loss, 1e-5 * std::fabs(exact.loss));
      ASSERT_EQ(run.gradients.size(), exact.gradients.size());
      double difference = 0, norm = 0;
      for (size_t i = 0; i < run.gradients.size(); ++i) {
        difference += std::pow(run.gradients[i] - exact.gradients[i], 2);
        norm += std::pow(exact.gradients[i], 2);
      }
      EXPECT_GT(norm, 1e-6);
      EXPECT_LT(std::sqrt(difference / norm), 1e-5);
      EXPECT_NE(run.formats.find(InfoOf(FormatOf(dtype).value()).name), std::string::npos) << run.formats;
      EXPECT_LT(run.weight_bytes * 3, exact.weight_bytes);
    }
  }
}

}  // namespace
}  // namespace thimble
