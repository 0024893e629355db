// The memory contract: what `thimble train` plans for a tier is what it takes of it, to the byte.
#include <gmock/gmock.h>
#include <stdlib.h>

#include "data/file.h"
#include "tests/recipes/random_recipe.h"
#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using nlohmann::json;

constexpr int kShards = 10;
constexpr int kRecipesOfAShard = 25;

class ContractTest : public SmallModelTest {
 protected:
  void SetUp() override {
    TestFolder::SetUp();
    // auto needs rates, and measuring them takes longer than all the rest.
    setenv("XDG_CACHE_HOME", Path("cache").c_str(), 1);
    Write("tokenizer.json", LetterTokenizerJson());
    Write("tokenizer_config.json", R"({"bos_token": "<s>", "eos_token": "</s>"})");
  }
  void TearDown() override {
    unsetenv("XDG_CACHE_HOME");
    TestFolder::TearDown();
  }

  // A recipe whose rows fill every micro-batch (or are of any length), beside what it needs.
  json MakeRecipe(Dice* dice) {
    const json config = RandomConfig(dice);
    Write("config.json", config.dump());
    json recipe = {{"model", {{"tokenizer", Path("tokenizer.json")}}},
                   {"compute", dice->Word({"f32", "bf16"})},
                   {"logging", {{"tensorboard", false}, {"report", false}}},
                   {"output", {{"folder", "run"}}}};
    if (dice->OneIn(6)) {
      recipe["model"]["config"] = {{"hidden_dim", 8 * dice->Between(2, 5)},
                                   {"num_layers", dice->Between(1, 4)},
                                   {"num_heads", 2},
                                   {"intermediate_dim", 48},
                                   {"tie_embeddings", dice->OneIn(2)}};
      recipe["optimizer"] = {{"name", dice->Word({"adamw", "adamw8bit", "lion", "adafactor"})}};
      recipe["memory"] = RandomMemory(dice, recipe["model"]["config"]["num_layers"], false);
    } else {
      const std::string format = dice->Word({"bf16", "f16", "f32", "nf4", "fp4"});
      std::filesystem::remove_all(Path("base"));
      EXPECT_EQ(Thimble({"init", Path("config.json"), "--format", format, "--out", Path("base")}), 0) << err_;
      recipe["model"]["path"] = "base";
      AddTraining(dice, format == "nf4" || format == "fp4", &recipe);
      recipe["memory"] = RandomMemory(dice, config["num_hidden_layers"], recipe["adapter"]["type"] == "dora");
    }
    AddRows(dice, &recipe);
    if (recipe["model"].contains("path") && dice->OneIn(4)) AddTeacher(dice, config, &recipe);
    if (dice->OneIn(4)) AddQat(dice, &recipe);
    return recipe;
  }

  // Trains; the summary's section about memory.
  json Train(const json& recipe) {
    Write("recipe.yaml", recipe.dump(1));
    EXPECT_EQ(Thimble({"train", Path("recipe.yaml")}), 0) << err_;
    const auto summary = ReadFile(Path("run/summary.json"));
    const auto plan = ReadFile(Path("run/plan.json"));
    std::filesystem::remove_all(Path("run"));
    if (!summary.ok() || !plan.ok()) return {};
    const json memory = json::parse(*summary)["memory"];
    for (const char* tier : {"device", "host", "disk"}) {
      EXPECT_EQ(json::parse(*plan)["tiers"][tier]["planned_bytes"], memory[tier]["planned_bytes"]) << tier;
    }
    return memory;
  }

  bool ragged_ = false;

 private:
  // Of another width and depth than the student.
  void AddTeacher(Dice* dice, json config, json* recipe) {
    config["hidden_size"] = 32;
    config["num_hidden_layers"] = dice->Between(1, 3);
    Write("teacher.json", config.dump());
    std::filesystem::remove_all(Path("teacher"));
    EXPECT_EQ(Thimble({"init", Path("teacher.json"), "--format", dice->Word({"bf16", "f32", "nf4"}), "--out",
                       Path("teacher")}),
              0)
        << err_;
    for (const char* name : {"tokenizer.json", "tokenizer_config.json"}) {
      std::filesystem::copy_file(Path(name), Path("teacher/") + name,
                                 std::filesystem::copy_options::overwrite_existing);
    }
    recipe->erase("loss");
    (*recipe)["distillation"] = {{"teacher", "teacher"},
                                 {"weight", 0.5},
                                 {"direction", dice->Word({"forward", "reverse", "symmetric"})},
                                 {"temperature", dice->OneIn(2) ? 1 : 2}};
    if ((*recipe)["memory"]["weights"] == "device" && !(*recipe)["memory"].contains("embeddings")) {
      (*recipe)["distillation"]["weights"] = dice->Word({"device", "host", "disk"});
    }
  }

  static void AddQat(Dice* dice, json* recipe) {
    if (recipe->contains("adapter")) {
      if (recipe->at("adapter")["type"] == "dora") return;
      recipe->at("adapter").erase("dropout");
    }
    (*recipe)["qat"] = {{"format", dice->Word({"q8_0", "q4_0", "int8", "fp8_e4m3", "mxfp4"})},
                        {"activations", dice->Word({"none", "int8", "fp8"})},
                        {"start_step", dice->Between(0, 1)}};
  }

  void AddRows(Dice* dice, json* recipe) {
    const int64_t letters = dice->Between(8, 60);
    const int64_t row_tokens = letters + 2;  // at most: <s> and </s>
    const int64_t rows_of_a_bin = dice->OneIn(4) ? 8 : dice->Between(1, 3);
    const int64_t micro_batch = dice->Between(1, 3);
    const int64_t accumulation = dice->Between(1, 3);
    std::string rows, held_out;
    for (int64_t i = 0; i < 2 * rows_of_a_bin * micro_batch * accumulation; ++i) {
      rows += LetterRow(dice, ragged_ ? dice->Between(2, letters) : letters);
    }
    for (int64_t i = 0; i < rows_of_a_bin * micro_batch; ++i) held_out += LetterRow(dice, letters);
    Write("rows.jsonl", rows);
    Write("held_out.jsonl", held_out);
    (*recipe)["data"] = {{"train", "rows.jsonl"},
                         {"chat_format", "plain"},
                         {"packing", dice->Word({"packed", "unpacked", "windows"})},
                         {"loss_on", dice->Word({"all", "responses"})},
                         {"seq_len", row_tokens * rows_of_a_bin}};
    if (dice->OneIn(2)) (*recipe)["data"]["validation"] = "held_out.jsonl";
    (*recipe)["training"] = {{"steps", 2},
                             {"micro_batch_size", micro_batch},
                             {"accumulation", accumulation},
                             {"threads", dice->Between(1, 2)}};
    if (dice->OneIn(8)) {
      (*recipe)["training"]["sample_prompts"] = {std::string(static_cast<size_t>(dice->Between(64, 90)), 'x')};
      (*recipe)["training"]["sample_tokens"] = 3;
    }
    if (dice->OneIn(3)) (*recipe)["loss"] = {{"label_smoothing", 0.1}, {"z_loss", 1e-4}};
    if (dice->OneIn(3)) (*recipe)["optimizer"]["max_grad_norm"] = 0;
    if (accumulation == 1 && dice->OneIn(2)) {
      (*recipe)["optimizer"]["max_grad_norm"] = 0;
      (*recipe)["training"]["optimizer_in_backward"] = true;
    }
  }
};

class RandomRecipes : public ContractTest, public testing::WithParamInterface<int> {};

TEST_P(RandomRecipes, TakeWhatWasPlanned) {
  std::map<std::string, int> tiers_used;
  for (int i = 0; i < kRecipesOfAShard; ++i) {
    Dice dice(static_cast<uint64_t>(GetParam() * kRecipesOfAShard + i));
    const json recipe = MakeRecipe(&dice);
    SCOPED_TRACE(recipe.dump());
    const json memory = Train(recipe);
    ASSERT_TRUE(memory.is_object());
    for (const char* tier : {"device", "host", "disk"}) {
      EXPECT_EQ(memory[tier]["measured_bytes"], memory[tier]["planned_bytes"]) << tier;
      if (memory[tier]["planned_bytes"] > 0) ++tiers_used[tier];
    }
  }
  EXPECT_EQ(tiers_used["device"], kRecipesOfAShard);
  EXPECT_GE(tiers_used["host"], kRecipesOfAShard / 5);
  EXPECT_GE(tiers_used["disk"], kRecipesOfAShard / 5);
}

// Where no micro-batch is as long as the longest could be, less is taken and never more.
TEST_F(ContractTest, RaggedRowsTakeNoMore) {
  ragged_ = true;
  for (uint64_t seed = 1000; seed < 1020; ++seed) {
    Dice dice(seed);
    const json recipe = MakeRecipe(&dice);
    SCOPED_TRACE(recipe.dump());
    const json memory = Train(recipe);
    ASSERT_TRUE(memory.is_object());
    for (const char* tier : {"device", "host", "disk"}) {
      EXPECT_LE(memory[tier]["measured_bytes"], memory[tier]["planned_bytes"]) << tier;
    }
    EXPECT_GT(memory["device"]["measured_bytes"], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(ContractTest, RandomRecipes, testing::Range(0, kShards));

}  // namespace
}  // namespace thimble
