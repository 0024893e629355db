// qat in recipes: what is exported is what was trained for, and what is wrong is said.
#include <gmock/gmock.h>

#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/file.h"
#include "data/model_folder.h"
#include "data/stored_weight.h"
#include "recipes/session.h"
#include "tests/recipes/small_model.h"
#include "trainer/engine.h"
#include "trainer/served_weights.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class QatTest : public SmallModelTest {
 protected:
  int Train(const std::vector<std::string>& settings, const std::string& format = "gguf") {
    std::vector<std::string> words = {"train", Path("recipe.yaml")};
    for (const std::string& setting : {"output.export.format=" + format, std::string("output.export.max_kl=1e-6")}) {
      words.insert(words.end(), {"--set", setting});
    }
    for (const std::string& setting : settings) words.insert(words.end(), {"--set", setting});
    return Thimble(words);
  }

  // The run's model, with what it is served with made.
  std::unique_ptr<ModelSession> Served() {
    auto model = OpenModel(Path("run"), /*best=*/false);
    EXPECT_TRUE(model.ok()) << model.status();
    EngineOptions options;
    options.train = false;
    options.max_tokens = 4;
    Engine engine(&(*model)->decoder, &(*model)->store, options);
    Batch batch;
    batch.tokens = batch.positions = batch.starts = {0};
    batch.targets = {-100};
    engine.Evaluate(batch, nullptr);
    return *std::move(model);
  }

  // Every matrix of the file holds the bytes that the run's model computes with; their number.
  int CompareBytes() {
    const std::unique_ptr<ModelSession> model = Served();
    const auto file = ModelFolder::Open(Path("run/model/model.gguf"));
    EXPECT_TRUE(file.ok()) << file.status();
    int compared = 0;
    for (StoreId id = 0; id < static_cast<StoreId>(model->store.size()); ++id) {
      const StoreId served = ServedOf(model->decoder, id);
      if (served < 0) continue;
      const StoreEntry& entry = model->store.entry(served);
      const TensorRef* tensor = (*file)->Find(model->store.entry(id).name);
      EXPECT_NE(tensor, nullptr);
      std::vector<char> bytes(tensor->info->bytes);
      EXPECT_EQ(tensor->info->bytes, entry.bytes) << entry.name;
      EXPECT_TRUE(tensor->file->ReadBytes(*tensor->info, 0, tensor->info->bytes, bytes.data()).ok());
      EXPECT_EQ(std::memcmp(bytes.data(), entry.view.data, bytes.size()), 0) << entry.name;
      ++compared;
    }
    return compared;
  }
};

TEST_F(QatTest, TheFileHoldsWhatWasTrainedFor) {
  const std::vector<std::vector<std::string>> runs = {
      {"qat.format=q4_0", "quantization.format=none"},
      {"qat.format=q4_0", "quantization.format=none", "adapter.type=none"},
      {"qat.format=mxfp4", "qat.tensors=[model.embed_tokens q4_0, '*.down_proj q5_1', '*.o_proj f16']",
       "qat.activations=int8", "qat.start_step=1"},
      {"qat.format=q8_0", "memory.weights=disk"},
      {"qat.format=q4_k_m", "adapter.type=none", "quantization.format=none", "training.optimizer_in_backward=true",
       "optimizer.max_grad_norm=0"}};
  for (const std::vector<std::string>& settings : runs) {
    ASSERT_EQ(Train(settings), 0) << err_ << settings[0];
    EXPECT_EQ(CompareBytes(), 8) << settings[0];
    const auto summary = nlohmann::json::parse(*ReadFile(Path("run/summary.json")));
    for (const char* tier : {"device", "host", "disk"}) {
      EXPECT_EQ(summary["memory"][tier]["planned_bytes"], summary["memory"][tier]["measured_bytes"]) << tier;
    }
    std::filesystem::remove_all(Path("run"));
  }
}

TEST_F(QatTest, TheFolderHoldsWhatWasTrainedFor) {
  const std::vector<std::vector<std::string>> runs = {{"int4", "adapter.type=none", "quantization.format=none"},
                                                      {"int4_g32", "qat.activations=int8"},
                                                      {"int8", "memory.weights=disk"},
                                                      {"fp8_e4m3", "qat.start_step=1"}};
  for (const std::vector<std::string>& run : runs) {
    // The embedding that trains, too, as it trained.
    std::vector<std::string> settings = {"qat.format=" + run[0], "output.export.dtype=f32"};
    settings.insert(settings.end(), run.begin() + 1, run.end());
    if (run[0] == "int4_g32") settings.push_back("output.export.max_kl=1");  // who reads it rounds no activations
    ASSERT_EQ(Train(settings, run[0]), 0) << err_ << run[0];
    const std::unique_ptr<ModelSession> model = Served();
    const auto folder = ModelFolder::Open(Path("run/model"));
    ASSERT_TRUE(folder.ok());
    int compared = 0;
    for (const LinearWeights* linear : model->decoder.layers[0].Linears()) {
      const auto stored = ReadStoredWeight(**folder, model->store.entry(linear->weight).name);
      ASSERT_TRUE(stored.ok()) << stored.status();
      const StoreEntry& served = model->store.entry(linear->served);
      ASSERT_EQ(served.view.block_size, stored->block_size);
      EXPECT_EQ(std::memcmp(served.view.data, stored->codes.data(), stored->codes.size()), 0) << served.name;
      EXPECT_EQ(std::memcmp(served.view.absmax, stored->absmax.data(), 4 * stored->absmax.size()), 0) << served.name;
      EXPECT_EQ(served.bytes, static_cast<int64_t>(stored->codes.size() + 4 * stored->absmax.size()));
      ++compared;
    }
    EXPECT_EQ(compared, 7);
    const auto summary = nlohmann::json::parse(*ReadFile(Path("run/summary.json")));
    for (const char* tier : {"device", "host", "disk"}) {
      EXPECT_EQ(summary["memory"][tier]["planned_bytes"], summary["memory"][tier]["measured_bytes"]) << tier;
    }
    std::filesystem::remove_all(Path("run"));
  }
}

TEST_F(QatTest, NoneStaysAsItTrains) {
  ASSERT_EQ(Train({"qat.format=q4_0", "qat.tensors=['* none', '*.up_proj q4_0']", "quantization.format=none"}), 0)
      << err_;
  EXPECT_EQ(CompareBytes(), 1);
  const auto file = ModelFolder::Open(Path("run/model/model.gguf"));
  ASSERT_TRUE(file.ok());
  EXPECT_EQ((*file)->Find("model.embed_tokens.weight")->info->dtype, TensorDType::kF16);
}

TEST_F(QatTest, WhatIsWrongIsSaid) {
  const auto refused = [&](const std::vector<std::string>& settings, const std::string& message) {
    EXPECT_EQ(Train(settings), 2) << settings.back();
    EXPECT_THAT(err_, HasSubstr(message));
  };
  refused({"qat.format=q4_0", "qat.tensors=[lm_head]"}, "not a pattern and a type");
  refused({"qat.format=q4_0", "qat.tensors=[lm_head q4_0]"}, "no matrix of the model has such a name");
  refused({"qat.format=q4_0", "qat.tensors=['* q4_2']"}, "\"q4_2\" is none of");
  refused({"qat.format=q4_0", "qat.tensors=['* q4_k']"}, "no whole blocks of 256");
  refused({"qat.format=q4_0", "adapter.type=dora"}, "knows no magnitudes");
  refused({"qat.format=q4_0", "adapter.dropout=0.1"}, "no input to drop");
  refused({"qat.activations=int8"}, "qat.format");
  refused({"qat.format=int4"}, "export that one");
  refused({"qat.format=q4_0", "output.export.format=int4"}, "export that one");
  refused({"qat.format=int8", "output.export.format=int4"}, "export that one");
  refused({"qat.format=int4", "output.export.format=int4", "qat.tensors=['* none']"}, "only GGUF files mix types");
  refused({"qat.format=int4_g128", "output.export.format=int4_g128"}, "no whole groups of 128");
  EXPECT_FALSE(std::filesystem::exists(Path("run")));
}

TEST_F(QatTest, TernaryModelsHaveTheirFormat) {
  Write("fresh.yaml", "model:\n  tokenizer: " + Path("base/tokenizer.json") +
                          "\n  config: {architecture: bitnet, hidden_dim: 64, num_layers: 1, num_heads: 2,"
                          " intermediate_dim: 64}\n"
                          "compute: f32\n"
                          "data: {train: rows.jsonl, chat_format: plain, seq_len: 32}\n"
                          "training: {steps: 1, accumulation: 1}\n"
                          "output: {folder: run}\n");
  ASSERT_EQ(Thimble({"plan", Path("fresh.yaml")}), 0) << err_;
  EXPECT_EQ(Thimble({"plan", Path("fresh.yaml"), "--set", "qat.format=q8_0"}), 2);
  EXPECT_THAT(err_, HasSubstr("ternary weights already"));
}

// Not after hours of training.
TEST_F(QatTest, WhatGgufCannotHoldIsRefusedBeforeTheRun) {
  auto config = nlohmann::json::parse(*ReadFile(Path("base/config.json")));
  config["model_type"] = "mistral";
  config["architectures"] = {"MistralForCausalLM"};
  config["sliding_window"] = 8;
  Write("base/config.json", config.dump());
  EXPECT_EQ(Train({"qat.format=q4_0"}), 2);
  EXPECT_THAT(err_, HasSubstr("sees a window of 8 tokens"));
  EXPECT_FALSE(std::filesystem::exists(Path("run/summary.json")));
}

}  // namespace
}  // namespace thimble
