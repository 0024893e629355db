// Exports read back: merged folders give the trained model's logits, adapters are what peft wrote.
#include "trainer/export.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "data/file.h"
#include "data/token_rows.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/trainer/golden_model.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::HasSubstr;

// A merged folder as a model of its own.
struct Loaded {
  explicit Loaded(const std::string& path) {
    auto opened = ModelFolder::Open(path);
    EXPECT_TRUE(opened.ok()) << opened.status();
    folder = std::move(*opened);
    const auto config = ReadDecoderConfig(*folder);
    EXPECT_TRUE(config.ok()) << config.status();
    auto declared = DeclareDecoder(*config, AdapterOptions(), false, Compute::kF32, StorageFor(*folder, {}), &store);
    EXPECT_TRUE(declared.ok()) << declared.status();
    decoder = std::move(*declared);
    store.Allocate();
    const absl::Status status = LoadWeights(*folder, decoder, {}, &store);
    EXPECT_TRUE(status.ok()) << status;
  }
  std::vector<float> Logits(const Batch& batch) {
    EngineOptions options;
    options.train = false;
    options.max_tokens = std::ssize(batch.tokens);
    Engine engine(&decoder, &store, options);
    return LogitsOf(&engine, batch);
  }

  std::unique_ptr<ModelFolder> folder;
  Store store;
  Decoder decoder;
};

// Every tensor of `found` is that of the f32 export, rounded once.
void ExpectRounded(const ModelFolder& exact, const ModelFolder& found, TensorDType dtype) {
  ASSERT_EQ(exact.tensors().size(), found.tensors().size());
  for (const TensorRef& tensor : exact.tensors()) {
    std::vector<float> values = ReadFloats(*tensor.file, tensor.info->name);
    for (float& v : values) {
      if (dtype == TensorDType::kF16) v = F16ToFloat(FloatToF16(v));
      if (dtype == TensorDType::kBF16) v = BF16ToFloat(FloatToBF16(v));
    }
    const TensorRef* other = found.Find(tensor.info->name);
    ASSERT_NE(other, nullptr) << tensor.info->name;
    EXPECT_EQ(other->info->dtype, dtype);
    EXPECT_EQ(values, ReadFloats(*other->file, tensor.info->name)) << tensor.info->name;
  }
}

// Golden models whose adapters are not zero.
class ExportGoldenTest : public testing::TestWithParam<std::string> {};

TEST_P(ExportGoldenTest, MergedFolderGivesTheSameLogits) {
  GoldenModel model(GetParam());
  const auto base = ModelFolder::Open(GoldenFolder(GetParam()).string());
  ASSERT_TRUE(base.ok()) << base.status();
  Engine engine = model.MakeEngine(SavePolicy::kKeep);
  const std::vector<float> expected = LogitsOf(&engine, model.batch());
  TempFolder temp;
  std::unique_ptr<Loaded> exact;
  for (const TensorDType dtype : {TensorDType::kF32, TensorDType::kF16, TensorDType::kBF16}) {
    const std::string out = temp / ("merged" + std::to_string(static_cast<int>(dtype)));
    const absl::Status status =
        ExportMerged(model.decoder(), model.store(), ExportSource{base->get(), "", ""}, {.dtype = dtype}, out);
    ASSERT_TRUE(status.ok()) << status;
    Loaded merged(out);
    if (dtype == TensorDType::kF32) {
      EXPECT_LT(RelativeDifference(expected, merged.Logits(model.batch()).data()), 1e-5);
      exact = std::make_unique<Loaded>(out);
    }
    ExpectRounded(*exact->folder, *merged.folder, dtype);
    EXPECT_EQ(merged.decoder.config.tie_embeddings, model.decoder().config.tie_embeddings);
    EXPECT_EQ(merged.folder->Find("lm_head.weight") == nullptr, model.decoder().config.tie_embeddings);
    const json& config = merged.folder->config();
    EXPECT_FALSE(config.contains("quantization_config"));
    for (const char* key : {"dtype", "torch_dtype"}) {
      if (!config.contains(key)) continue;
      EXPECT_EQ(config[key], dtype == TensorDType::kF32   ? "float32"
                             : dtype == TensorDType::kF16 ? "float16"
                                                          : "bfloat16");
    }
    EXPECT_TRUE(config.contains("dtype") || config.contains("torch_dtype"));
  }
  // The adapter matters: the base alone gives other logits.
  Loaded alone(GoldenFolder(GetParam()).string());
  EXPECT_GT(RelativeDifference(expected, alone.Logits(model.batch()).data()), 1e-3);
}

TEST_P(ExportGoldenTest, PeftAdapterIsTheGoldenOne) {
  GoldenModel model(GetParam());
  TempFolder temp;
  const std::string out = temp / "adapter";
  ASSERT_TRUE(ExportPeft(model.decoder(), model.store(), ExportSource{nullptr, "some/base", ""}, out).ok());
  const fs::path golden = GoldenFolder(GetParam()) / "adapter";
  const auto expected = TensorFile::Open((golden / "adapter_model.safetensors").string());
  const auto found = TensorFile::Open(out + "/adapter_model.safetensors");
  ASSERT_TRUE(expected.ok() && found.ok()) << found.status();
  EXPECT_EQ((*expected)->tensors().size(), (*found)->tensors().size());
  for (const TensorInfo& info : (*expected)->tensors()) {
    const TensorInfo* other = (*found)->Find(info.name);
    ASSERT_NE(other, nullptr) << info.name;
    EXPECT_EQ(info.shape, other->shape) << info.name;
    EXPECT_EQ(ReadFloats(**expected, info.name), ReadFloats(**found, info.name)) << info.name;
  }
  const json config = json::parse(ReadFile(out + "/adapter_config.json").value());
  const json reference = json::parse(ReadFile((golden / "adapter_config.json").string()).value());
  for (const char* key : {"peft_type", "task_type", "r", "lora_alpha", "use_rslora", "use_dora", "rank_pattern",
                          "alpha_pattern", "bias", "fan_in_fan_out", "modules_to_save"}) {
    EXPECT_EQ(config[key], reference[key]) << key;
  }
  const auto sorted = [](json list) {
    std::sort(list.begin(), list.end());
    return list;
  };
  EXPECT_EQ(sorted(config["target_modules"]), sorted(reference["target_modules"]));
  EXPECT_EQ(config.value("layers_to_transform", json()), reference.value("layers_to_transform", json()));
  EXPECT_EQ(config["base_model_name_or_path"], "some/base");
  EXPECT_EQ(config["inference_mode"], true);
}

INSTANTIATE_TEST_SUITE_P(Cases, ExportGoldenTest,
                         testing::Values("llama_dora", "llama_grouped_tied", "qwen2_yarn_dora", "qwen2_biases",
                                         "qwen3_dora_rslora", "qwen3_one_layer", "mistral_window"),
                         [](const testing::TestParamInfo<std::string>& info) { return info.param; });

// From nothing: no base folder lends its config.json.
TEST(ExportTest, FreshModelsGetTheirOwnConfig) {
  for (const bool windowed : {false, true}) {
    DecoderConfig config = TinyConfig();
    config.model_type = windowed ? "mistral" : "llama";
    if (windowed) config.windows = {4, 4};
    config.rope_scaling.type = RopeScaling::Type::kLinear;
    config.rope_scaling.factor = 2;
    config.rope_scaling.original_max_position = config.max_position;
    TinyModel model(config);
    Engine engine = model.MakeEngine(64);
    const Batch batch = RandomSample(40, 3, config.vocab_size);
    const std::vector<float> expected = LogitsOf(&engine, batch);
    TempFolder temp;
    const absl::Status status =
        ExportMerged(model.decoder(), model.store(), {}, {.dtype = TensorDType::kF32}, temp / "merged");
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(expected, Loaded(temp / "merged").Logits(batch)) << "nothing is rounded";
  }
}

TEST(ExportTest, ShardsHoldTheSameTensors) {
  TinyModel model(TinyConfig(), TinyAdapter());
  TempFolder temp;
  ExportOptions options = {.dtype = TensorDType::kF32};
  ASSERT_TRUE(ExportMerged(model.decoder(), model.store(), {}, options, temp / "one").ok());
  options.max_shard_bytes = 20000;
  ASSERT_TRUE(ExportMerged(model.decoder(), model.store(), {}, options, temp / "many").ok());
  EXPECT_TRUE(fs::exists(temp / "many/model.safetensors.index.json"));
  EXPECT_FALSE(fs::exists(temp / "one/model.safetensors.index.json"));
  const Batch batch = RandomSample(20, 3, 67);
  EXPECT_EQ(Loaded(temp / "one").Logits(batch), Loaded(temp / "many").Logits(batch));
  EXPECT_EQ(Fingerprint(*Loaded(temp / "one").folder).value(), Fingerprint(*Loaded(temp / "many").folder).value());
}

TEST(ExportTest, RefusesAFolderThatIsNotEmptyAndAnAdapterThatIsNone) {
  TinyModel model(TinyConfig());
  TempFolder temp;
  ASSERT_TRUE(WriteFileAtomically(temp / "file", "mine").ok());
  const absl::Status status = ExportMerged(model.decoder(), model.store(), {}, {}, temp.path());
  EXPECT_FALSE(status.ok());
  EXPECT_THAT(std::string(status.message()), HasSubstr(temp.path()));
  EXPECT_EQ(ReadFile(temp / "file").value(), "mine");
  EXPECT_EQ(ExportPeft(model.decoder(), model.store(), {}, temp / "adapter").code(),
            absl::StatusCode::kInvalidArgument);
  TinyModel adapted(TinyConfig(), TinyAdapter());
  EXPECT_FALSE(ExportPeft(adapted.decoder(), adapted.store(), {}, temp / "file/adapter").ok());
}

TEST(ExportTest, QualityReportMeasuresTheLoss) {
  TinyModel model(TinyConfig(), TinyAdapter(/*dora=*/true));
  auto rows = std::make_shared<TokenRows>();
  for (uint64_t i = 0; i < 12; ++i) {
    const Batch sample = RandomSample(20 + static_cast<int64_t>(i), i, 67);
    rows->Append({sample.tokens, std::vector<uint8_t>(sample.tokens.size(), 1)});
  }
  auto stream = BatchStream::Make(rows, {.seq_len = 64, .shuffle = false});
  ASSERT_TRUE(stream.ok()) << stream.status();
  Engine engine = model.MakeEngine(64);
  TempFolder temp;
  ASSERT_TRUE(ExportMerged(model.decoder(), model.store(), {}, {.dtype = TensorDType::kF32}, temp / "f32").ok());
  const auto exact = CompareWithExport(&engine, temp / "f32", &*stream, 0);
  ASSERT_TRUE(exact.ok()) << exact.status();
  EXPECT_LT(exact->mean_kl, 1e-6);
  EXPECT_EQ(exact->agreement, 1);
  EXPECT_EQ(exact->tokens, stream->stats().tokens);
  double loss = 0;
  int64_t targets = 0;
  Batch batch;
  ASSERT_TRUE(stream->Seek({}).ok());
  for (int64_t i = 0; i < stream->batches_per_epoch(); ++i) {
    ASSERT_TRUE(stream->Next(&batch).ok());
    loss += engine.Evaluate(batch, nullptr);
    targets += batch.num_targets;
  }
  EXPECT_EQ(exact->targets, targets);
  EXPECT_DOUBLE_EQ(exact->trained_loss, loss / static_cast<double>(exact->targets));
  EXPECT_NEAR(exact->loss, exact->trained_loss, 1e-5);
  ASSERT_TRUE(ExportMerged(model.decoder(), model.store(), {}, {.dtype = TensorDType::kBF16}, temp / "bf16").ok());
  const auto rounded = CompareWithExport(&engine, temp / "bf16", &*stream, 2);
  ASSERT_TRUE(rounded.ok()) << rounded.status();
  EXPECT_GT(rounded->mean_kl, exact->mean_kl);
  EXPECT_LT(rounded->mean_kl, 1e-3);
  EXPECT_GE(rounded->max_kl, rounded->mean_kl);
  EXPECT_LT(rounded->tokens, exact->tokens) << "two batches only";
  // An export without the adapter is another model.
  TinyModel other(TinyConfig());
  ASSERT_TRUE(ExportMerged(other.decoder(), other.store(), {}, {.dtype = TensorDType::kF32}, temp / "other").ok());
  const auto wrong = CompareWithExport(&engine, temp / "other", &*stream, 0);
  ASSERT_TRUE(wrong.ok()) << wrong.status();
  EXPECT_GT(wrong->mean_kl, 1e-3);
  EXPECT_LT(wrong->agreement, 1);
  EXPECT_GT(std::abs(wrong->loss - wrong->trained_loss), 1e-3);
}

}  // namespace
}  // namespace thimble
