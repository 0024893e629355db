// thimble export and thimble quantize on small models.
#include <gmock/gmock.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "data/file.h"
#include "data/model_folder.h"
#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class ExportCommandTest : public SmallModelTest {
 protected:
  // All values of a folder's tensor.
  std::vector<float> Values(const std::string& folder, const std::string& name) {
    const auto opened = ModelFolder::Open(folder);
    if (!opened.ok()) return {};
    const TensorRef* tensor = (*opened)->Find(name);
    if (tensor == nullptr) return {};
    std::vector<float> values(tensor->info->elements);
    EXPECT_TRUE(tensor->file->ReadFloats(*tensor->info, 0, tensor->info->elements, values.data()).ok());
    return values;
  }
  void Train() { ASSERT_EQ(Thimble({"train", Path("recipe.yaml")}), 0) << err_; }
};

const char kQuery[] = "model.layers.0.self_attn.q_proj.weight";

TEST_F(ExportCommandTest, MergesARunAndMeasuresIt) {
  Train();
  ASSERT_EQ(Thimble({"export", Path("run"), "--out=" + Path("merged") + "/", "--dtype=f32", "--json"}), 0) << err_;
  const nlohmann::json json = Json();
  ASSERT_FALSE(json.is_discarded()) << out_;
  EXPECT_EQ(json["path"], Path("merged"));
  EXPECT_EQ(json["dtype"], "f32");
  EXPECT_EQ(json["base"], Path("base"));
  EXPECT_EQ(json["decoded_layers"], 7);
  EXPECT_EQ(json["decoded_format"], "nf4");
  EXPECT_EQ(json["merged_layers"], 7);
  EXPECT_EQ(json["accepted"], true);
  EXPECT_GT(json["quality"]["tokens"], 0);
  EXPECT_LT(json["quality"]["mean_kl"], 1e-6);
  EXPECT_EQ(json["quality"]["agreement"], 1.0);
  EXPECT_TRUE(std::filesystem::exists(Path("merged/tokenizer.json")));
  EXPECT_NE(Values(Path("merged"), kQuery), Values(Path("base"), kQuery));

  ASSERT_EQ(Thimble({"export", Path("run"), "--out", Path("text")}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("Decoded 7 linear layers exactly from nf4 of " + Path("base")));
  EXPECT_THAT(out_, HasSubstr("rounded once to bf16"));
  EXPECT_THAT(out_, HasSubstr("the recipe's held-out rows"));
  EXPECT_EQ(Thimble({"export", Path("run"), "--out", Path("text")}), 2) << "the folder is there already";
  EXPECT_THAT(err_, HasSubstr("exists; choose another folder"));
}

TEST_F(ExportCommandTest, AboveALimitNothingIsLeft) {
  Train();
  const int64_t before = FilesInFolder();
  EXPECT_EQ(Thimble({"export", Path("run"), "--out", Path("merged"), "--max_kl=0", "--json"}), 1);
  EXPECT_EQ(Json()["accepted"], false) << out_;
  EXPECT_THAT(err_, HasSubstr("mean KL"));
  EXPECT_EQ(FilesInFolder(), before);
  EXPECT_EQ(Thimble({"export", Path("run"), "--out", Path("merged"), "--data", Path("none.jsonl")}), 2);
  EXPECT_EQ(FilesInFolder(), before);
}

TEST_F(ExportCommandTest, FiguresLieBesideTheWeights) {
  Train();
  ASSERT_EQ(Thimble({"export", Path("run"), "--out=" + Path("merged"), "--dtype=f32", "--json"}), 0) << err_;
  const auto quality = nlohmann::json::parse(ReadFile(Path("merged/quality.json")).value());
  EXPECT_EQ(quality["measured"], true);
  EXPECT_GT(quality["targets"], 0);
  EXPECT_GT(quality["tokens"], quality["targets"]);
  ASSERT_EQ(quality["steps"].size(), 1);
  EXPECT_EQ(quality["steps"][0]["step"], "merged");
  EXPECT_EQ(quality["steps"][0]["format"], "f32");
  EXPECT_EQ(quality["steps"], Json()["quality"]["steps"]);
  // The folder's own evaluation over the same rows says the same.
  const double loss = quality["steps"][0]["loss"];
  EXPECT_NEAR(loss, quality["trained"]["loss"].get<double>(), 1e-5);
  EXPECT_NEAR(quality["steps"][0]["perplexity"], std::exp(loss), 1e-9);
  ASSERT_EQ(Thimble({"export", Path("merged"), "--out=" + Path("again"), "--dtype=f32", "--data", Path("rows.jsonl"),
                     "--json"}),
            0)
      << err_;
  const double over_rows = Json()["quality"]["steps"][0]["loss"];
  ASSERT_EQ(Thimble({"eval", Path("merged"), "--data", Path("rows.jsonl"), "--chat_format=plain", "--json"}), 0)
      << err_;
  EXPECT_NEAR(Json()["loss"], over_rows, 1e-5);
  const std::string card = ReadFile(Path("merged/README.md")).value();
  EXPECT_THAT(card, HasSubstr("# merged"));
  EXPECT_THAT(card, HasSubstr("A fine-tune of `base`"));
  EXPECT_THAT(card, HasSubstr("LoRA of rank 4"));
  EXPECT_THAT(card, HasSubstr("| merged (f32) |"));
  EXPECT_THAT(card, testing::Not(HasSubstr(Path(""))));
  // Without rows it says so.
  ASSERT_EQ(Thimble({"export", Path("base"), "--out", Path("plain")}), 0) << err_;
  EXPECT_EQ(nlohmann::json::parse(ReadFile(Path("plain/quality.json")).value())["measured"], false);
  EXPECT_THAT(ReadFile(Path("plain/README.md")).value(), HasSubstr("Nothing: no rows were given"));
}

TEST_F(ExportCommandTest, TheStepThatLostItIsNamed) {
  Train();
  ASSERT_EQ(Thimble({"export", Path("run"), "--format=nf4", "--out=" + Path("nf4"), "--max_kl=10", "--min_agreement=0",
                     "--json"}),
            0)
      << err_;
  EXPECT_EQ(Json()["dtype"], "nf4");
  const nlohmann::json steps = Json()["quality"]["steps"];
  ASSERT_EQ(steps.size(), 2);
  EXPECT_EQ(steps[0]["step"], "merged");
  EXPECT_EQ(steps[1]["step"], "quantised");
  EXPECT_EQ(steps[1]["format"], "nf4");
  const double merged = steps[0]["kl_mean"], quantised = steps[1]["kl_mean"];
  EXPECT_LT(merged, quantised);
  EXPECT_EQ(Json()["quality"]["mean_kl"], quantised);
  const auto written = ModelFolder::Open(Path("nf4"));
  ASSERT_TRUE(written.ok()) << written.status();
  EXPECT_EQ((*written)->config()["quantization_config"]["bnb_4bit_quant_type"], "nf4");
  EXPECT_FALSE(std::filesystem::exists(Path("nf4.thimble-merged")));

  const int64_t before = FilesInFolder();
  const auto refused = [&](double limit, const std::string& part) {
    EXPECT_EQ(Thimble({"export", Path("run"), "--format=nf4", "--out", Path("x"), "--min_agreement=0",
                       "--max_kl=" + std::to_string(limit)}),
              1);
    EXPECT_THAT(err_, HasSubstr(part));
    EXPECT_EQ(FilesInFolder(), before);
  };
  refused((merged + quantised) / 2, "lost in the step quantised (nf4)");
  refused(0, "lost in the step merged (bf16)");
}

TEST_F(ExportCommandTest, WritesAnAdapter) {
  Train();
  ASSERT_EQ(Thimble({"export", Path("run"), "--format=peft", "--out", Path("adapter"), "--json"}), 0) << err_;
  EXPECT_EQ(Json()["tensors"], 14);
  EXPECT_EQ(Json()["format"], "peft");
  EXPECT_EQ(Json()["quality"]["steps"][0]["step"], "adapter");
  EXPECT_GT(Json()["quality"]["trained"]["loss"], 0);
  EXPECT_THAT(ReadFile(Path("adapter/README.md")).value(), HasSubstr("A PEFT adapter for `base`"));
  EXPECT_TRUE(std::filesystem::exists(Path("adapter/adapter_config.json")));
  EXPECT_EQ(Thimble({"export", Path("run"), "--format=peft", "--out", Path("a"), "--dtype=f32"}), 2);
  EXPECT_EQ(Thimble({"export", Path("base"), "--format=peft", "--out", Path("a")}), 2);
  EXPECT_EQ(Thimble({"export", Path("run"), "--format=peft", "--out", Path("a"), "--data", Path("none.jsonl")}), 2);
  EXPECT_FALSE(std::filesystem::exists(Path("a")));
}

TEST_F(ExportCommandTest, RewritesAFolderInAnotherTypeAndInShards) {
  ASSERT_EQ(Thimble({"export", Path("base"), "--out", Path("f32"), "--dtype=f32", "--max_shard_size=40KB", "--data",
                     Path("rows.jsonl"), "--json"}),
            0)
      << err_;
  EXPECT_TRUE(std::filesystem::exists(Path("f32/model.safetensors.index.json")));
  EXPECT_EQ(Values(Path("f32"), kQuery), Values(Path("base"), kQuery));
  EXPECT_EQ(Json()["quality"]["agreement"], 1.0);
  ASSERT_EQ(Thimble({"export", Path("f32"), "--out", Path("bf16")}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("give rows with --data=FILE"));
  EXPECT_EQ(Values(Path("bf16"), kQuery), Values(Path("base"), kQuery));
}

TEST_F(ExportCommandTest, DecodesAQuantisedFolder) {
  ASSERT_EQ(Thimble({"quantize", Path("base"), "--out", Path("nf4"), "--json"}), 0) << err_;
  EXPECT_EQ(Json()["before"]["BF16"]["tensors"].get<int>(),
            Json()["after"]["BF16"]["tensors"].get<int>() + Json()["after"]["nf4"]["tensors"].get<int>());
  EXPECT_EQ(Json()["after"]["nf4"]["tensors"], 7);
  ASSERT_EQ(Thimble({"export", Path("nf4"), "--out", Path("plain"), "--json"}), 0) << err_;
  EXPECT_EQ(Json()["decoded_layers"], 7);
  const std::vector<float> original = Values(Path("base"), kQuery);
  const std::vector<float> decoded = Values(Path("plain"), kQuery);
  ASSERT_EQ(decoded.size(), original.size());
  double error = 0;
  double norm = 0;
  for (size_t i = 0; i < original.size(); ++i) {
    error += std::pow(original[i] - decoded[i], 2);
    norm += std::pow(original[i], 2);
  }
  EXPECT_GT(error, 0);
  EXPECT_LT(std::sqrt(error / norm), 0.12) << "nf4 loses about a tenth";
}

// To GGUF and back: the same weights and the same tokens.
TEST_F(ExportCommandTest, GgufHoldsTheWholeModel) {
  ASSERT_EQ(Thimble({"export", Path("base"), "--format=gguf", "--dtype=f32", "--out", Path("gguf")}), 0) << err_;
  EXPECT_EQ(Thimble({"export", Path("base"), "--dtype=f32", "--out", Path("folder")}), 0) << err_;
  ASSERT_EQ(Thimble({"export", Path("gguf/model.gguf"), "--dtype=f32", "--out", Path("back")}), 0) << err_;
  EXPECT_EQ(Values(Path("back"), kQuery), Values(Path("folder"), kQuery));
  std::string tokens;
  for (const std::string& model : {Path("folder"), Path("back"), Path("gguf/model.gguf")}) {
    ASSERT_EQ(Thimble({"tokenize", model, "--file=" + Path("rows.jsonl")}), 0) << err_;
    if (tokens.empty()) tokens = out_;
    EXPECT_EQ(out_, tokens) << model;
  }
  // Quantised: the read-back is measured, and a limit is kept.
  const std::vector<std::string> words = {"export",       Path("base"), "--format=gguf",
                                          "--dtype=q8_0", "--json",     "--data=" + Path("rows.jsonl")};
  std::vector<std::string> strict = words;
  strict.insert(strict.end(), {"--out=" + Path("strict"), "--max_kl=0"});
  EXPECT_EQ(Thimble(strict), 1);
  EXPECT_FALSE(std::filesystem::exists(Path("strict")));
  std::vector<std::string> loose = words;
  loose.insert(loose.end(), {"--out=" + Path("loose"), "--max_kl=1", "--min_agreement=0"});
  ASSERT_EQ(Thimble(loose), 0) << err_;
  EXPECT_EQ(Json()["format"], "gguf");
  EXPECT_EQ(Json()["dtype"], "q8_0");
  EXPECT_GT(Json()["quality"]["mean_kl"], 0);
}

TEST_F(ExportCommandTest, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--format=onnx"}), 2);
  EXPECT_THAT(err_, HasSubstr("found 'onnx', expected safetensors"));
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--format=gguf", "--dtype=q4_km"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'q4_k_m'?"));
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--format=gguf_adapter"}), 2);
  EXPECT_THAT(err_, HasSubstr("needs a run that trained an adapter"));
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--format=safetensor"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'safetensors'?"));
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--dtype=fp16"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'f16'?"));
  EXPECT_EQ(Thimble({"export", Path("base")}), 2);
  EXPECT_THAT(err_, HasSubstr("--out: missing"));
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--max_shard_size=big"}), 2);
  EXPECT_EQ(Thimble({"export", Path("base"), "--out", Path("x"), "--best"}), 2);
  EXPECT_FALSE(std::filesystem::exists(Path("x")));
}

TEST_F(ExportCommandTest, QuantizesByFormatAndBlockSize) {
  ASSERT_EQ(
      Thimble({"quantize", Path("base"), "--format=fp4", "--nodouble_quant", "--block_size=128", "--out", Path("fp4")}),
      0)
      << err_;
  EXPECT_THAT(out_, HasSubstr("fp4           7 tensors"));
  EXPECT_LE(LongestLine(out_), 80u + Path("").size());
  EXPECT_EQ(Thimble({"quantize", Path("fp4"), "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("quantised already"));
  for (const char* size : {"0", "48", "16", "8192", "4294967360"}) {
    EXPECT_EQ(Thimble({"quantize", Path("base"), "--out", Path("x"), "--block_size", size}), 2) << size;
    EXPECT_THAT(err_, HasSubstr("--block_size: found"));
  }
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--out", Path("x"), "--format=nf5"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'nf4'?"));
  Write("base/config.json", R"({"model_type": "gpt9"})");
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("gpt9"));
  EXPECT_FALSE(std::filesystem::exists(Path("x")));
}

}  // namespace
}  // namespace thimble
