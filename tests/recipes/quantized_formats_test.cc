// The formats of codes with scales through the commands: quantised folders and bases quantised while they are read are
// the same model, they train, and their exports decode to what was trained on.
#include <gmock/gmock.h>

#include <filesystem>

#include "data/file.h"
#include "data/model_folder.h"
#include "tests/recipes/small_model.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class QuantizedFormatsTest : public SmallModelTest {
 protected:
  double LossOf(const std::string& model) {
    EXPECT_EQ(Thimble({"eval", model, "--data=" + Path("rows.jsonl"), "--chat_format=plain", "--json"}), 0) << err_;
    return Json().at("loss");
  }
  int Train(const std::string& base, const std::string& format, const std::string& run) {
    return Thimble({"train", Path("recipe.yaml"), "--set", "model.path=" + Path(base), "--set",
                    "quantization.format=" + format, "--set", "output.folder=" + Path(run), "--set",
                    "output.export.format=merged", "--set", "output.export.dtype=f32"});
  }
  nlohmann::json SummaryOf(const std::string& run) const {
    return nlohmann::json::parse(*ReadFile(Path(run + "/summary.json")));
  }
};

TEST_F(QuantizedFormatsTest, FoldersAreTheBasesThatRecipesQuantise) {
  for (const char* format : {"int8", "int4", "int4_g32", "fp8_e4m3", "fp8_e5m2", "nvfp4"}) {
    SCOPED_TRACE(format);
    const std::string name = format;
    ASSERT_EQ(Thimble({"quantize", Path("base"), "--format", name, "--out", Path(name), "--json"}), 0) << err_;
    EXPECT_LT(Json()["after"].dump().size(), 1000);
    ASSERT_EQ(Train("base", name, "at_" + name), 0) << err_;
    ASSERT_EQ(Train(name, "none", "of_" + name), 0) << err_;
    const nlohmann::json at = SummaryOf("at_" + name), of = SummaryOf("of_" + name);
    EXPECT_EQ(at.at("eval_loss_before"), of.at("eval_loss_before"));
    EXPECT_EQ(at.at("eval_loss_after"), of.at("eval_loss_after"));
    EXPECT_NE(at.at("eval_loss_before"), at.at("eval_loss_after"));
    const nlohmann::json &device = at["memory"]["device"], &other = of["memory"]["device"];
    EXPECT_GT(device["planned_bytes"], 0);
    EXPECT_EQ(device, other);
    EXPECT_EQ(device["planned_bytes"], device["measured_bytes"]);
    // Decoded, it is the same model.
    ASSERT_EQ(Thimble({"export", Path(name), "--dtype=f32", "--out", Path(name + "_plain")}), 0) << err_;
    EXPECT_EQ(LossOf(Path(name)), LossOf(Path(name + "_plain")));
    EXPECT_NE(LossOf(Path(name)), LossOf(Path("base")));
  }
}

TEST_F(QuantizedFormatsTest, ExportsQuantiseWhatWasMerged) {
  ASSERT_EQ(Train("base", "int4_g32", "run"), 0) << err_;
  ASSERT_EQ(Thimble({"export", Path("run"), "--format=int8", "--out", Path("int8"), "--json"}), 0) << err_;
  EXPECT_EQ(Json()["dtype"], "int8");
  const auto folder = ModelFolder::Open(Path("int8")).value();
  EXPECT_EQ(folder->config()["quantization_config"]["format"], "int-quantized");
  EXPECT_EQ(folder->config()["quantization_config"]["config_groups"]["group_0"]["format"], "int-quantized");
  EXPECT_NEAR(LossOf(Path("int8")), LossOf(Path("run")), 0.01);
}

TEST_F(QuantizedFormatsTest, PlansKnowTheBytesFromTheConfigurationAlone) {
  ASSERT_EQ(Thimble({"quantize", Path("base"), "--format=int4_g32", "--out", Path("q")}), 0) << err_;
  const auto plan = [&](const std::string& base) {
    EXPECT_EQ(Thimble({"plan", Path("recipe.yaml"), "--set", "model.path=" + Path(base), "--set",
                       "quantization.format=none", "--json"}),
              0)
        << err_;
    return Json();
  };
  const nlohmann::json whole = plan("q");
  std::filesystem::remove(Path("q/model.safetensors"));
  const nlohmann::json bare = plan("q");
  ASSERT_TRUE(whole["categories"].is_object());
  EXPECT_EQ(whole["categories"], bare["categories"]);
}

TEST_F(QuantizedFormatsTest, MistakesAreNamed) {
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--format=int4_g128", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("expected a multiple of 128 for int4_g128"));
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--format=int8", "--block_size=32", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("--block_size and --double_quant are for nf4 and fp4; int8 names its groups"));
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--format=int3", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("expected one of nf4, fp4, int8"));
  EXPECT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "quantization.format=int4", "--set",
                     "quantization.block_size=32"}),
            2);
  EXPECT_THAT(err_, HasSubstr("only nf4 and fp4 take a block_size"));
}

// Codes by GPTQ lie on the same scales, and the model's distributions stay nearer to the base's.
TEST_F(QuantizedFormatsTest, GptqLosesLessThanRounding) {
  for (const char* format : {"int4", "nf4", "nvfp4"}) {
    SCOPED_TRACE(format);
    const std::string name = format, kind = std::string("--format=") + format;
    ASSERT_EQ(Thimble({"quantize", Path("base"), kind, "--out", Path(name)}), 0) << err_;
    ASSERT_EQ(Thimble({"quantize", Path("base"), kind, "--method=gptq", "--calibration", Path("rows.jsonl"),
                       "--chat_format=plain", "--out", Path(name + "_gptq")}),
              0)
        << err_;
    const auto divergence = [&](const std::string& model) {
      EXPECT_EQ(Thimble({"eval", model, "--data=" + Path("rows.jsonl"), "--chat_format=plain",
                         "--reference=" + Path("base"), "--json"}),
                0)
          << err_;
      return Json().at("kl_mean").get<double>();
    };
    EXPECT_LT(divergence(Path(name + "_gptq")), 0.7 * divergence(Path(name)));
    EXPECT_EQ(*ReadFile(Path(name + "/config.json")), *ReadFile(Path(name + "_gptq/config.json")));
    EXPECT_EQ(std::filesystem::file_size(Path(name + "/model.safetensors")),
              std::filesystem::file_size(Path(name + "_gptq/model.safetensors")));
  }
}

TEST_F(QuantizedFormatsTest, GptqNeedsRows) {
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--method=gptq", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("needs rows to calibrate on: --calibration=FILE"));
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--damping=0.1", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("--damping is for --method=gptq"));
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--method=gptk", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'gptq'?"));
  EXPECT_EQ(Thimble({"quantize", Path("base"), "--method=gptq", "--calibration=none.jsonl", "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("none.jsonl"));
  EXPECT_FALSE(std::filesystem::exists(Path("x")));
}

// Nothing but an adapter trains on codes.
TEST_F(QuantizedFormatsTest, CodesAreNotTrained) {
  ASSERT_EQ(Thimble({"quantize", Path("base"), "--format=int8", "--out", Path("int8")}), 0) << err_;
  EXPECT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "model.path=" + Path("int8"), "--set",
                     "quantization.format=none", "--set", "adapter.type=none"}),
            2);
  EXPECT_THAT(err_, HasSubstr("is quantised and cannot be trained itself: train an adapter"));
}

}  // namespace
}  // namespace thimble
