// thimble init: a folder of random weights from a configuration.
#include <gmock/gmock.h>

#include <cmath>

#include "data/file.h"
#include "data/quantize_folder.h"
#include "ops/parallel.h"
#include "tests/recipes/small_model.h"
#include "trainer/weight_loader.h"

namespace thimble {
namespace {

using testing::HasSubstr;

class InitCommandTest : public SmallModelTest {
 protected:
  void SetUp() override {
    SmallModelTest::SetUp();
    std::filesystem::copy(Path("base/config.json"), Path("shape.json"));
  }

  static std::vector<float> Values(const std::string& folder, const std::string& name) {
    const auto model = ModelFolder::Open(folder).value();
    const TensorRef* tensor = model->Find(name);
    EXPECT_NE(tensor, nullptr) << name;
    if (tensor == nullptr) return {};
    std::vector<float> values(static_cast<size_t>(tensor->info->elements));
    EXPECT_TRUE(tensor->file->ReadFloats(*tensor->info, 0, tensor->info->elements, values.data()).ok());
    return values;
  }
  static std::string PrintOf(const std::string& folder) {
    return Fingerprint(*ModelFolder::Open(folder).value()).value();
  }
};

constexpr char kDown[] = "model.layers.0.mlp.down_proj.weight";

TEST_F(InitCommandTest, WritesAFolderThatTrains) {
  ASSERT_EQ(Thimble({"init", Path("base"), "--out", Path("fresh"), "--json"}), 0) << err_;
  const auto base = ModelFolder::Open(Path("base")).value();
  EXPECT_EQ(Json()["tensors"]["BF16"]["tensors"], base->tensors().size());
  EXPECT_TRUE(std::filesystem::exists(Path("fresh/tokenizer.json")));
  EXPECT_EQ(ReadFile(Path("fresh/tokenizer_config.json")).value(),
            ReadFile(Path("base/tokenizer_config.json")).value());
  const auto fresh = ModelFolder::Open(Path("fresh")).value();
  ASSERT_EQ(fresh->tensors().size(), base->tensors().size());
  for (const TensorRef& tensor : base->tensors()) {
    EXPECT_TRUE(fresh->Require(tensor.info->name, tensor.info->shape).ok()) << tensor.info->name;
  }
  double squares = 0;
  const std::vector<float> down = Values(Path("fresh"), kDown);
  for (float value : down) squares += static_cast<double>(value) * value;
  const double expected = base->config().value("initializer_range", 0.02);
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(down.size())), expected, 0.05 * expected);
  EXPECT_EQ(Values(Path("fresh"), "model.norm.weight"), std::vector<float>(64, 1.0f));
  EXPECT_NE(Values(Path("fresh"), "model.layers.0.mlp.gate_proj.weight"),
            Values(Path("fresh"), "model.layers.0.mlp.up_proj.weight"));

  ASSERT_EQ(Thimble({"train", Path("recipe.yaml"), "--set", "model.path=" + Path("fresh"), "--set", "training.steps=1",
                     "--set", "output.folder=" + Path("run")}),
            0)
      << err_;
}

TEST_F(InitCommandTest, FourBitsAreThoseOfQuantize) {
  for (const std::string format : {"nf4", "fp4"}) {
    ASSERT_EQ(Thimble({"init", Path("base"), "--seed=7", "--out", Path("plain" + format)}), 0) << err_;
    ASSERT_EQ(Thimble({"quantize", Path("plain" + format), "--format", format, "--out", Path("two" + format)}), 0);
    ASSERT_EQ(Thimble({"init", Path("base"), "--seed=7", "--format", format, "--out", Path("one" + format)}), 0);
    EXPECT_THAT(out_, HasSubstr(format + "           7 tensors"));
    EXPECT_EQ(PrintOf(Path("one" + format)), PrintOf(Path("two" + format)));
    EXPECT_EQ(ReadFile(Path("one" + format + "/config.json")).value(),
              ReadFile(Path("two" + format + "/config.json")).value());
  }
}

TEST_F(InitCommandTest, TheSeedAloneDecides) {
  const int threads = NumThreads();
  for (const auto& [name, seed, count] : {std::tuple("a", "1", 1), std::tuple("b", "1", 3), std::tuple("c", "2", 3)}) {
    SetNumThreads(count);
    // A file is a shape alone: nothing is carried along.
    ASSERT_EQ(Thimble({"init", Path("shape.json"), "--format=f32", "--seed", seed, "--max_shard_size=20000", "--out",
                       Path(name)}),
              0)
        << err_;
    EXPECT_FALSE(std::filesystem::exists(Path(name) + "/tokenizer.json"));
    EXPECT_TRUE(std::filesystem::exists(Path(name) + "/model.safetensors.index.json"));
  }
  SetNumThreads(threads);
  EXPECT_EQ(PrintOf(Path("a")), PrintOf(Path("b")));
  EXPECT_NE(PrintOf(Path("a")), PrintOf(Path("c")));
}

TEST_F(InitCommandTest, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(Thimble({"init", Path("base")}), 2);
  EXPECT_THAT(err_, HasSubstr("--out: missing"));
  EXPECT_EQ(Thimble({"init", Path("none"), "--out", Path("x")}), 2);
  EXPECT_EQ(Thimble({"init", Path("base"), "--out", Path("x"), "--format=bf6"}), 2);
  EXPECT_THAT(err_, HasSubstr("did you mean 'bf16'?"));
  EXPECT_EQ(Thimble({"init", Path("base"), "--out", Path("x"), "--block_size=128"}), 2);
  EXPECT_THAT(err_, HasSubstr("for 4-bit weights"));
  EXPECT_EQ(Thimble({"init", Path("base"), "--out", Path("x"), "--seed=-1"}), 2);
  EXPECT_EQ(Thimble({"init", Path("base"), "--out", Path("base")}), 2);
  EXPECT_EQ(Thimble({"init", CopyModel("nf4", "quantised"), "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("has a quantization_config"));
  EXPECT_EQ(Thimble({"init", Write("odd.json", R"({"model_type": "gpt9"})"), "--out", Path("x")}), 2);
  EXPECT_THAT(err_, HasSubstr("gpt9"));
  EXPECT_FALSE(std::filesystem::exists(Path("x")));
}

}  // namespace
}  // namespace thimble
