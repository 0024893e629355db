// Ternary models that do not train: codes in memory, and the files that hold them.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "data/model_folder.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/ternary_storage.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/export.h"
#include "trainer/export_gguf.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

using testing::HasSubstr;

constexpr char kTokenizer[] = THIMBLE_SOURCE_DIR "/examples/quickstart/base";
constexpr char kLayer[] = "model.layers.0.mlp.down_proj.weight";

// Master weights of one layer whose rows are whole blocks of every type.
struct Trained {
  explicit Trained(bool tied = true, int64_t intermediate = 512) {
    const nlohmann::json object = {{"model_type", "bitnet"},
                                   {"hidden_act", "relu2"},
                                   {"hidden_size", 256},
                                   {"num_hidden_layers", 1},
                                   {"num_attention_heads", 4},
                                   {"num_key_value_heads", 2},
                                   {"intermediate_size", intermediate},
                                   {"vocab_size", 4096},
                                   {"max_position_embeddings", 64},
                                   {"tie_word_embeddings", tied},
                                   {"quantization_config", TernaryQuantizationJson()}};
    auto config = ParseDecoderConfig(object, "config.json");
    EXPECT_TRUE(config.ok()) << config.status();
    config->init_std = 0.04f;
    auto declared = DeclareDecoder(*config, AdapterOptions(), /*train_weights=*/true, Compute::kF32,
                                   StorageForShape(Format::kF32, {}), &store);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder = std::move(*declared);
    store.Allocate();
    InitWeights(decoder, 1, &store);
  }
  Store store;
  Decoder decoder;
};

// A file or folder as a model that does not train.
struct Frozen {
  explicit Frozen(const std::string& path, AdapterOptions adapter = {}) {
    auto opened = ModelFolder::Open(path);
    EXPECT_TRUE(opened.ok()) << opened.status();
    folder = std::move(*opened);
    const auto config = ReadDecoderConfig(*folder);
    EXPECT_TRUE(config.ok()) << config.status();
    auto declared = DeclareDecoder(*config, adapter, false, Compute::kF32, StorageFor(*folder, {}), &store);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder = std::move(*declared);
    store.Allocate();
    const absl::Status status = LoadWeights(*folder, decoder, {}, &store);
    EXPECT_TRUE(status.ok()) << status;
  }
  WeightView view(const char* name) const { return store.entry(store.Find(name)).view; }
  std::unique_ptr<ModelFolder> folder;
  Store store;
  Decoder decoder;
};

template <typename Model>
std::vector<float> Logits(Model& model) {
  EngineOptions options;
  options.train = false;
  options.max_tokens = 16;
  Engine engine(&model.decoder, &model.store, options);
  return LogitsOf(&engine, RandomSample(16, 3, 4096));
}

const ExportSource kSource = {nullptr, "", kTokenizer};

std::string Codes(const WeightView& view) {
  return {static_cast<const char*>(view.data), static_cast<size_t>(TernaryBytes(view.rows, view.cols) - 4)};
}

std::string Packed(const Trained& trained, const std::string& path) {
  ExportOptions options;
  options.dtype = TensorDType::kF32;
  options.packed = true;
  const absl::Status status = ExportMerged(trained.decoder, trained.store, kSource, options, path);
  EXPECT_TRUE(status.ok()) << status;
  return path;
}

TEST(TernaryModelTest, CodesInMemoryGiveTheBitsOfMasters) {
  Trained trained;
  const std::vector<float> expected = Logits(trained);
  TempFolder temp;
  const std::string masters = temp / "masters";
  ASSERT_TRUE(ExportMerged(trained.decoder, trained.store, kSource, {.dtype = TensorDType::kF32}, masters).ok());
  Frozen frozen(masters);
  EXPECT_EQ(frozen.view(kLayer).format, Format::kTernary);
  EXPECT_EQ(frozen.store.entry(frozen.store.Find(kLayer)).bytes, 256 * 512 / 4 + 4);
  EXPECT_EQ(Logits(frozen), expected);
}

TEST(TernaryModelTest, PackedFoldersGiveTheBitsOfMasters) {
  Trained trained;
  const std::vector<float> expected = Logits(trained);
  TempFolder temp;
  Frozen packed(Packed(trained, temp / "packed"));
  const TensorRef* tensor = packed.folder->Find(kLayer);
  EXPECT_EQ(tensor->info->dtype, TensorDType::kU8);
  EXPECT_EQ(tensor->info->shape, std::vector<int64_t>({64, 512}));
  EXPECT_EQ(packed.folder->config()["quantization_config"]["quantization_mode"], "offline");
  EXPECT_EQ(Logits(packed), expected);
}

TEST(TernaryModelTest, MastersOfPackedCodesRoundToThem) {
  Trained trained;
  TempFolder temp;
  Frozen packed(Packed(trained, temp / "packed"));
  const std::string masters = temp / "masters";
  const ExportSource source = {packed.folder.get(), "", ""};
  ASSERT_TRUE(ExportMerged(packed.decoder, packed.store, source, {.dtype = TensorDType::kF32}, masters).ok());
  Frozen again(masters);
  EXPECT_EQ(Codes(again.view(kLayer)), Codes(packed.view(kLayer)));
  EXPECT_NEAR(*again.view(kLayer).absmax, *packed.view(kLayer).absmax, 1e-6 * *packed.view(kLayer).absmax);
}

class TernaryGgufTest : public testing::TestWithParam<std::string> {};

TEST_P(TernaryGgufTest, HoldsCodesAndScale) {
  Trained trained;
  TempFolder temp;
  const std::string path = temp / "model.gguf";
  const absl::Status status = ExportGguf(trained.decoder, trained.store, kSource, *FindGgufMix(GetParam()), path);
  ASSERT_TRUE(status.ok()) << status;
  const Frozen packed(Packed(trained, temp / "packed"));
  Frozen read(path);
  EXPECT_EQ(read.decoder.config.activation, GateActivation::kReluSquared);
  const WeightView found = read.view(kLayer), expected = packed.view(kLayer);
  EXPECT_EQ(found.format, Format::kTernary);
  EXPECT_EQ(Codes(found), Codes(expected));
  // In f16; in bf16 3 digits fewer.
  EXPECT_NEAR(*found.absmax, *expected.absmax, (GetParam() == "bf16" ? 4e-3 : 5e-4) * *expected.absmax);
  if (GetParam() == "f32") {
    EXPECT_EQ(Logits(read), Logits(trained));
  }
}

INSTANTIATE_TEST_SUITE_P(Types, TernaryGgufTest, testing::Values("tq2_0", "tq1_0", "q8_0", "f16", "bf16", "f32"),
                         [](const testing::TestParamInfo<std::string>& info) { return info.param; });

TEST(TernaryModelTest, RowsThatAreNoBlocksStayExact) {
  const Trained trained(/*tied=*/true, /*intermediate=*/320);
  TempFolder temp;
  const std::string path = temp / "model.gguf";
  ASSERT_TRUE(ExportGguf(trained.decoder, trained.store, kSource, *FindGgufMix("tq2_0"), path).ok());
  const Frozen read(path), packed(Packed(trained, temp / "packed"));
  EXPECT_EQ(read.folder->Find(kLayer)->info->dtype, TensorDType::kQ8_0);
  EXPECT_EQ(read.folder->Find("model.layers.0.mlp.up_proj.weight")->info->dtype, TensorDType::kTQ2_0);
  EXPECT_EQ(Codes(read.view(kLayer)), Codes(packed.view(kLayer)));
}

TEST(TernaryModelTest, WhatNoFileCanHoldIsRefused) {
  const Trained trained, untied(/*tied=*/false);
  TempFolder temp;
  const auto gguf = [&](const Trained& model, const char* mix) {
    return std::string(
        ExportGguf(model.decoder, model.store, kSource, *FindGgufMix(mix), temp / "model.gguf").message());
  };
  EXPECT_THAT(gguf(trained, "q4_0"), HasSubstr("--dtype=q4_0 would round ternary weights"));
  EXPECT_THAT(gguf(untied, "tq2_0"), HasSubstr("tie_word_embeddings false"));

  AdapterOptions adapter;
  adapter.rank = 2;
  adapter.targets = {"q_proj"};
  const Frozen adapted(Packed(trained, temp / "packed"), adapter);
  const ExportSource source = {adapted.folder.get(), "", ""};
  EXPECT_THAT(std::string(ExportMerged(adapted.decoder, adapted.store, source, {}, temp / "merged").message()),
              HasSubstr("export it as peft"));
}

}  // namespace
}  // namespace thimble
