// The recipe reader: values, defaults, paths, overrides, and every kind of error by its whole message.
#include "recipes/recipe_reader.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <vector>

#include "google/protobuf/util/message_differencer.h"
#include "recipes/recipe_options.h"
#include "recipes/recipe_writer.h"

namespace thimble {
namespace {

using recipe::Adapter;
using recipe::Data;

constexpr char kSmall[] =
    "model: {path: base}\n"
    "adapter: {type: lora}\n"
    "data: {train: rows.jsonl}\n";

absl::StatusOr<Recipe> Read(const std::string& text, const std::vector<std::string>& overrides = {}) {
  return ParseRecipe(text, "/home/me/my.yaml", overrides);
}

// The message of the error in kSmall followed by `text`.
std::string ErrorOf(const std::string& text, const std::vector<std::string>& overrides = {}) {
  const absl::StatusOr<Recipe> recipe = Read(kSmall + text, overrides);
  if (recipe.ok()) return "no error";
  EXPECT_EQ(recipe.status().code(), absl::StatusCode::kInvalidArgument);
  return std::string(recipe.status().message());
}

TEST(RecipeReaderTest, ReadsEveryKindOfValue) {
  const auto recipe = Read(
      "model: {path: base}\n"
      "compute: bf16\n"
      "adapter: {type: dora, rank: 8, dropout: 0.05, rslora: true, targets: [q_proj, v_proj]}\n"
      "data:\n"
      "  train: [a.jsonl, /b.jsonl]\n"
      "  form: prompt_completion\n"
      "  columns: {prompt: question}\n"
      "  validation: [held.jsonl, more.jsonl]\n"
      "  system: \"Be \\\"brief\\\".\\n\"\n"
      "memory: {device_budget: 1.5GiB}\n");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_EQ(recipe->compute(), Recipe::COMPUTE_BF16);
  EXPECT_EQ(recipe->adapter().type(), Adapter::TYPE_DORA);
  EXPECT_EQ(recipe->adapter().rank(), 8);
  EXPECT_DOUBLE_EQ(recipe->adapter().dropout(), 0.05);
  EXPECT_TRUE(recipe->adapter().rslora());
  ASSERT_EQ(recipe->adapter().targets_size(), 2);
  EXPECT_EQ(recipe->adapter().targets(1), "v_proj");
  ASSERT_EQ(recipe->data().train_size(), 2);
  EXPECT_EQ(recipe->data().train(0), "/home/me/a.jsonl");
  EXPECT_EQ(recipe->data().train(1), "/b.jsonl");
  EXPECT_EQ(recipe->data().form(), Data::FORM_PROMPT_COMPLETION);
  EXPECT_EQ(recipe->data().columns().prompt(), "question");
  EXPECT_EQ(recipe->data().validation(1), "/home/me/more.jsonl");
  EXPECT_EQ(recipe->data().system(), "Be \"brief\".\n");
  EXPECT_EQ(recipe->memory().device_budget(), int64_t{3} << 29);
}

TEST(RecipeReaderTest, SetsDefaultsButNotWhatHasNone) {
  const auto recipe = Read(kSmall);
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_TRUE(recipe->optimizer().has_learning_rate());
  EXPECT_FALSE(recipe->training().has_epochs());
  EXPECT_FALSE(recipe->memory().has_device_budget());
  EXPECT_FALSE(recipe->model().has_config());
  EXPECT_FALSE(TrainsAllWeights(*recipe));
  EXPECT_FALSE(TrainsEmbeddings(*recipe));
}

TEST(RecipeReaderTest, FullTrainingIsWhatRemainsWithoutAnAdapter) {
  const auto recipe = Read("model: {path: base}\ndata: {train: rows.jsonl}\n");
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_TRUE(TrainsAllWeights(*recipe));
  EXPECT_TRUE(TrainsEmbeddings(*recipe));
}

TEST(RecipeReaderTest, TakesRelativePathsFromTheRecipesFolderAndOverridesFromTheWorkingFolder) {
  const auto recipe = ParseRecipe(std::string(kSmall) + "output: {folder: /tmp/x/../run/}\n", "recipes/my.yaml",
                                  {"data.validation=held.jsonl"});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  const std::string here = std::filesystem::current_path().string();
  EXPECT_EQ(recipe->model().path(), here + "/recipes/base");
  EXPECT_EQ(recipe->data().validation(0), here + "/held.jsonl");
  EXPECT_EQ(recipe->output().folder(), "/tmp/run");
}

TEST(RecipeReaderTest, OverridesAnyKey) {
  const auto recipe = Read(std::string(kSmall) + "training: {epochs: 3}\n",
                           {"training.epochs=null", "training.steps=10", "adapter.targets=[q_proj]",
                            "data.train=[/a, /b]", "optimizer.learning_rate=1e-3", "data.system=a = b"});
  ASSERT_TRUE(recipe.ok()) << recipe.status();
  EXPECT_FALSE(recipe->training().has_epochs());
  EXPECT_EQ(recipe->training().steps(), 10);
  EXPECT_EQ(recipe->adapter().targets(0), "q_proj");
  ASSERT_EQ(recipe->data().train_size(), 2);
  EXPECT_EQ(recipe->data().train(1), "/b");
  EXPECT_EQ(recipe->optimizer().learning_rate(), 1e-3);
  EXPECT_EQ(recipe->data().system(), "a = b");
}

TEST(RecipeReaderTest, WrittenRecipeReadsBackTheSame) {
  const auto good = Read(std::string(kSmall) +
                             "optimizer: {learning_rate: 0.00012345678901234567, eps: 1e-9}\n"
                             "memory: {device_budget: 8GiB}\n"
                             "training: {sample_prompts: ['a: b # c', \"tab\\t\\\\ \\u00e9\\n\\x01\", '']}\n",
                         {"data.train=[/a, /b]", "data.columns.text=t"});
  ASSERT_TRUE(good.ok()) << good.status();
  const std::string text = WriteRecipe(*good);
  const auto again = ParseRecipe(text, "/elsewhere/resolved.yaml", {});
  ASSERT_TRUE(again.ok()) << again.status() << "\n" << text;
  EXPECT_TRUE(google::protobuf::util::MessageDifferencer::Equals(*good, *again)) << text;
  EXPECT_EQ(WriteRecipe(*again), text);
  EXPECT_NE(text.find("  device_budget: 8GiB\n"), std::string::npos) << text;
  EXPECT_NE(text.find("  config: null\n"), std::string::npos) << text;
}

TEST(RecipeReaderTest, ErrorsNameFileLineKeyAndNearestKey) {
  EXPECT_EQ(ErrorOf("optimizer:\n  learning_rat: 1e-4\n"),
            "/home/me/my.yaml:5: optimizer.learning_rat: unknown key; did you mean 'optimizer.learning_rate'? Allowed "
            "here: name, learning_rate, beta1, beta2, eps, weight_decay, decay_on, max_grad_norm, "
            "moment_rounding, projection_rank, projection_scale, projection_steps");
  EXPECT_EQ(ErrorOf("learning_rate: 1e-4\n").substr(0, 87),
            "/home/me/my.yaml:4: learning_rate: unknown key; did you mean 'optimizer.learning_rate'?");
  EXPECT_EQ(ErrorOf("loss:\n  lora_rank_of_it: 4\n"),
            "/home/me/my.yaml:5: loss.lora_rank_of_it: unknown key. Allowed here: label_smoothing, z_loss, "
            "filter_threshold");
}

TEST(RecipeReaderTest, ErrorsSayWhatWasFoundAndWhatIsAllowed) {
  EXPECT_EQ(ErrorOf("loss:\n\n  z_loss: big\n"),
            "/home/me/my.yaml:6: loss.z_loss: found 'big', expected a number from 0 to 1");
  EXPECT_EQ(ErrorOf("quantization: {format: nf5}\n"),
            "/home/me/my.yaml:4: quantization.format: found 'nf5', expected one of none, nf4, fp4, int8, int4, "
            "int4_g32, int4_g64, int4_g128, fp8_e4m3, fp8_e5m2, nvfp4; did you mean 'nf4'?");
  EXPECT_EQ(ErrorOf("training: {steps: 0}\n"),
            "/home/me/my.yaml:4: training.steps: found '0', expected a whole number from 1 to 1000000000");
  EXPECT_EQ(ErrorOf("training: {steps: 1.5}\n"),
            "/home/me/my.yaml:4: training.steps: found '1.5', expected a whole number from 1 to 1000000000");
  EXPECT_EQ(ErrorOf("training: {steps: \"15\"}\n"),
            "/home/me/my.yaml:4: training.steps: found '15', expected a whole number from 1 to 1000000000");
  EXPECT_EQ(ErrorOf("training: {seed: 99999999999999999999}\n"),
            "/home/me/my.yaml:4: training.seed: found '99999999999999999999', expected a whole number of at least 0");
  EXPECT_EQ(ErrorOf("training: {epochs: 0}\n"),
            "/home/me/my.yaml:4: training.epochs: found '0', expected a number above 0 and at most 1000000");
  EXPECT_EQ(ErrorOf("optimizer: {beta1: 1}\n"),
            "/home/me/my.yaml:4: optimizer.beta1: found '1', expected a number from 0 to below 1");
  EXPECT_EQ(ErrorOf("optimizer: {eps: .nan}\n"),
            "/home/me/my.yaml:4: optimizer.eps: found '.nan', expected a number above 0 and at most 1");
  EXPECT_EQ(ErrorOf("logging: {report: yes}\n"),
            "/home/me/my.yaml:4: logging.report: found 'yes', expected true or false");
  EXPECT_EQ(ErrorOf("logging: [report]\n"),
            "/home/me/my.yaml:4: logging: found a list, expected the keys tensorboard, report");
  EXPECT_EQ(ErrorOf("optimizer: {eps: [1]}\n"),
            "/home/me/my.yaml:4: optimizer.eps: found a list, expected a number above 0 and at most 1");
  EXPECT_EQ(ErrorOf("memory: {device_budget: 8 gigs}\n"),
            "/home/me/my.yaml:4: memory.device_budget: found '8 gigs', expected a number of bytes such as 8GiB, 500MB "
            "or 1048576");
  EXPECT_EQ(ErrorOf("memory: {device_budget: -1GiB}\n").substr(0, 62),
            "/home/me/my.yaml:4: memory.device_budget: found '-1GiB', expec");
  EXPECT_EQ(ErrorOf("output: {folder: ''}\n"), "/home/me/my.yaml:4: output.folder: found '', expected a path");
}

TEST(RecipeReaderTest, RefusesRepeatedAndMissingKeysAndOtherShapes) {
  EXPECT_EQ(ErrorOf("loss: {z_loss: 0.1}\nloss: {z_loss: 0.2}\n"),
            "/home/me/my.yaml:5: loss: given twice, first at /home/me/my.yaml:4; keep one");
  EXPECT_EQ(Read("model: {path: base}\n").status().message(),
            "/home/me/my.yaml: data.train: missing; expected a path or a list of paths. Files to train on: a path or a "
            "list of paths; JSON, JSON lines or plain text, each also as .zst.");
  EXPECT_EQ(Read("model:\n  config: {hidden_dim: 8, num_heads: 2, intermediate_dim: 8}\n").status().message(),
            "/home/me/my.yaml:2: model.config.num_layers: missing; expected a whole number from 1 to 1024. Decoder "
            "layers.");
  EXPECT_EQ(Read("").status().message(),
            "/home/me/my.yaml: found nothing, expected a recipe; see: thimble help recipe");
  EXPECT_EQ(Read("- a\n").status().message(),
            "/home/me/my.yaml:1: found a list, expected the keys of a recipe; see: thimble help recipe");
  EXPECT_EQ(Read("a: 1\n---\nb: 2\n").status().message(), "/home/me/my.yaml:2: found a second document, expected one");
  EXPECT_EQ(Read("a:\n  b: 1\n c: [\n").status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read("? [1, 2]\n: 3\n").status().message(), "/home/me/my.yaml:1: found a list as a key");
  EXPECT_EQ(Read(std::string(100000, '[')).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read("a: *nowhere\n").status().code(), absl::StatusCode::kInvalidArgument);
}

TEST(RecipeReaderTest, BrokenYamlNamesTheLine) {
  EXPECT_EQ(Read("model:\n  path: [a\n").status().message(),
            "/home/me/my.yaml:3: not valid YAML: end of sequence flow not found (column 1)");
}

TEST(RecipeReaderTest, OverrideErrorsNameTheOverride) {
  EXPECT_EQ(ErrorOf("", {"training.steps=abc"}),
            "--set training.steps=abc: training.steps: found 'abc', expected a whole number from 1 to 1000000000");
  EXPECT_EQ(ErrorOf("", {"adapter.rnak=4"}).substr(0, 76),
            "--set adapter.rnak=4: adapter.rnak: unknown key; did you mean 'adapter.rank'");
  EXPECT_EQ(ErrorOf("", {"adapter"}), "--set adapter: expected KEY=VALUE, for example --set training.steps=100");
  EXPECT_EQ(ErrorOf("", {"adapter.rank.x=1"}), "--set adapter.rank.x=1: adapter.rank has no keys of its own");
  EXPECT_EQ(ErrorOf("", {"adapter.rank=[1"}),
            "--set adapter.rank=[1: the value is not YAML: end of sequence flow not found");
}

TEST(RecipeReaderTest, OptimizersHaveTheirOwnDefaults) {
  const auto options = [](const std::string& optimizer) {
    const auto recipe = Read(
        "model: {path: base}\nadapter: {type: none}\ntrainable: {weights: all}\n"
        "data: {train: rows.jsonl}\noptimizer: {" +
        optimizer + "}\n");
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    return EngineOptionsOf(*recipe).optimizer;
  };
  EXPECT_EQ(options("").kind, OptimizerKind::kAdamW);
  EXPECT_EQ(options("").beta2, 0.999);
  EXPECT_EQ(options("").eps, 1e-8);
  EXPECT_EQ(options("name: adamw8bit").kind, OptimizerKind::kAdamW8Bit);
  EXPECT_EQ(options("name: adamw8bit").moment_rounding, MomentRounding::kNearest);
  EXPECT_EQ(options("name: adamw8bit, moment_rounding: bitsandbytes").moment_rounding, MomentRounding::kGrid);
  EXPECT_EQ(options("name: lion").kind, OptimizerKind::kLion);
  EXPECT_EQ(options("name: lion").beta2, 0.99);
  EXPECT_EQ(options("name: lion, beta2: 0.95").beta2, 0.95);
  EXPECT_EQ(options("name: adafactor").kind, OptimizerKind::kAdafactor);
  EXPECT_EQ(options("name: apollo").kind, OptimizerKind::kApollo);
  EXPECT_EQ(options("name: apollo").projection_rank, 128);
  EXPECT_EQ(options("name: apollo").eps, 1e-6);
  EXPECT_EQ(options("name: apollo, projection_rank: 1, projection_scale: 128").projection_scale, 128);
}

TEST(RecipeReaderTest, RefusesOptionsOfOtherOptimizers) {
  const std::string here = "/home/me/my.yaml:4: optimizer.";
  const std::string name = " and optimizer.name (/home/me/my.yaml:4): ";
  EXPECT_EQ(ErrorOf("optimizer: {name: adafactor, beta1: 0.9}\n"),
            here + "beta1" + name + "adafactor keeps no mean of gradients: leave it out");
  EXPECT_EQ(ErrorOf("optimizer: {name: adafactor, beta2: 0.9}\n"),
            here + "beta2" + name + "adafactor's decay follows from the step, 1 - step^-0.8: leave it out");
  for (const std::string optimizer : {"adafactor", "lion"}) {
    EXPECT_EQ(ErrorOf("optimizer: {name: " + optimizer + ", eps: 1e-9}\n"),
              here + "eps" + name + "adafactor and lion divide by nothing that needs it: leave it out");
  }
  for (const std::string key : {"projection_rank", "projection_scale", "projection_steps"}) {
    EXPECT_EQ(ErrorOf("optimizer: {name: lion, " + key + ": 2}\n"),
              here + key + name + "only apollo projects gradients: set name to apollo");
  }
  EXPECT_EQ(ErrorOf("optimizer: {name: adamw, moment_rounding: bitsandbytes}\n"),
            here + "moment_rounding" + name + "only 8-bit moments are rounded: set name to adamw8bit");
  EXPECT_EQ(ErrorOf("optimizer: {name: apollo}\n"),
            here +
                "name and adapter.type (/home/me/my.yaml:2): apollo is for whole weight matrices, an adapter's are "
                "small already: set name to adamw or adamw8bit");
}

TEST(RecipeReaderTest, RefusesPairs) {
  EXPECT_EQ(ErrorOf("training:\n  steps: 5\n  epochs: 1\n"),
            "/home/me/my.yaml:6: training.epochs and training.steps (/home/me/my.yaml:5): give one of them");
  EXPECT_EQ(ErrorOf("training: {steps: 5}\n", {"training.epochs=2"}),
            "--set training.epochs=2: training.epochs and training.steps (/home/me/my.yaml:4): give one of them");
  EXPECT_EQ(
      ErrorOf("schedule: {warmup_steps: 5, warmup_ratio: 0.1}\n"),
      "/home/me/my.yaml:4: schedule.warmup_steps and schedule.warmup_ratio (/home/me/my.yaml:4): give one of them");
  EXPECT_EQ(ErrorOf("trainable: {weights: all}\n"),
            "/home/me/my.yaml:2: adapter.type and trainable.weights (/home/me/my.yaml:4): an adapter stands beside "
            "frozen weights: set adapter.type to none to train all");
  EXPECT_EQ(ErrorOf("quantization: {format: nf4}\n", {"adapter.type=none"}),
            "/home/me/my.yaml:4: quantization.format and adapter.type (--set adapter.type=none): quantised weights are "
            "frozen: set adapter.type to lora or dora, or format to none");
  EXPECT_EQ(ErrorOf("output: {export: {format: peft}}\n", {"adapter.type=none"}),
            "/home/me/my.yaml:4: output.export.format and adapter.type (--set adapter.type=none): peft exports an "
            "adapter and there is none: set output.export.format to merged");
  EXPECT_EQ(ErrorOf("", {"model.path=null"}),
            "--set model.path=null: model.path and model.config: give the folder of a base, or the shape of a model to "
            "train from scratch");
}

TEST(RecipeReaderTest, EveryShippedRecipeReads) {
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(THIMBLE_SOURCE_DIR "/recipes")) {
    if (entry.path().extension() != ".yaml") continue;
    const auto recipe = ReadRecipe(entry.path().string(), {});
    EXPECT_TRUE(recipe.ok()) << recipe.status();
    ++count;
  }
  EXPECT_GE(count, 4);
}

TEST(RecipeReaderTest, MissingFileIsNotFound) {
  const auto recipe = ReadRecipe("/nowhere/my.yaml", {});
  EXPECT_EQ(recipe.status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(recipe.status().message(), "cannot open /nowhere/my.yaml: No such file or directory");
}

}  // namespace
}  // namespace thimble
