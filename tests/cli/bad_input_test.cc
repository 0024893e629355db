// Wrong input of every kind: one clear message, exit code 2, and not a file more than before.
#include <functional>
#include <limits>

#include "tests/cli/tiny_job.h"

namespace thimble {
namespace {

using nlohmann::json;

class BadInput : public TinyJob {
 protected:
  // Runs the recipe and expects a refusal whose message names all of `names`.
  void ExpectRefused(const std::string& what, const std::vector<std::string>& names,
                     const std::vector<std::string>& settings = {}, int exit_code = 2) {
    SCOPED_TRACE(what);
    const auto before = Files();
    const ProgramResult result = Train(settings);
    EXPECT_EQ(result.exit_code, exit_code) << "signal " << result.signal << "\n" << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    // The message is the last thing said.
    const size_t start = result.errors.rfind("thimble: ");
    ASSERT_NE(start, std::string::npos) << result.errors;
    const std::string message = result.errors.substr(start);
    EXPECT_EQ(std::count(message.begin(), message.end(), '\n'), 1) << message;
    for (const std::string& name : names) {
      EXPECT_NE(message.find(name), std::string::npos) << "no '" << name << "' in: " << message;
    }
    EXPECT_EQ(Files(), before);
  }
  void ExpectWeightsRefused(const std::string& what, const RawTensors& tensors, std::vector<std::string> names) {
    Write("base/model.safetensors", tensors.Bytes());
    names.push_back(Path("base"));
    ExpectRefused(what, names);
    Write("base/model.safetensors", tensors_.Bytes());
  }
  void ExpectRecipeRefused(const std::string& what, const std::function<void(json*)>& change,
                           const std::vector<std::string>& names) {
    json recipe = recipe_;
    change(&recipe);
    WriteRecipe(recipe);
    ExpectRefused(what, names);
    WriteRecipe(recipe_);
  }
  void ExpectRowsRefused(const std::string& what, const std::string& rows, std::vector<std::string> names) {
    Write("train.jsonl", rows);
    names.push_back("train.jsonl");
    ExpectRefused(what, names);
    Write("train.jsonl", Rows(40, 1));
  }
};

TEST_F(BadInput, MissingFiles) {
  const ProgramResult result = Run({"train", Path("nothing.yaml")});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_EQ(result.Messages(), 1) << result.errors;
  EXPECT_NE(result.errors.find("nothing.yaml"), std::string::npos) << result.errors;

  ExpectRefused("missing model folder", {"elsewhere"}, {"model.path=" + Path("elsewhere")});
  ExpectRefused("missing rows", {"elsewhere.jsonl"}, {"data.train=" + Path("elsewhere.jsonl")});
  for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
    const std::string content = FileContent(Path(std::string("base/") + name));
    std::filesystem::remove(Path(std::string("base/") + name));
    ExpectRefused(std::string("missing ") + name, {name});
    Write(std::string("base/") + name, content);
  }
}

TEST_F(BadInput, DamagedSafetensors) {
  const std::string whole = tensors_.Bytes();
  const auto refused = [this](const std::string& what, const std::string& bytes) {
    Write("base/model.safetensors", bytes);
    ExpectRefused(what, {"model.safetensors"});
  };
  refused("empty", "");
  refused("cut in the length", whole.substr(0, 5));
  refused("cut in the header", whole.substr(0, 300));
  refused("cut in the data", whole.substr(0, whole.size() - 1));
  refused("more data than tensors", whole + "more");
  for (const uint64_t size : {uint64_t{whole.size()}, uint64_t{1} << 62, ~uint64_t{0}}) {
    refused("header longer than the file", std::string(reinterpret_cast<const char*>(&size), 8) + whole.substr(8));
  }
  std::string no_json = whole;
  no_json[8] = '[';
  refused("header is no JSON", no_json);
}

TEST_F(BadInput, WrongTensors) {
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const auto changed = [&](const std::string& what, const std::function<void(RawTensors*)>& change,
                           std::vector<std::string> names) {
    RawTensors tensors = tensors_;
    change(&tensors);
    ExpectWeightsRefused(what, tensors, std::move(names));
  };
  const auto offsets = [&](int64_t begin, int64_t end) {
    return [&name, begin, end](RawTensors* t) {
      const int64_t b = t->header[name]["data_offsets"][0];
      const int64_t e = t->header[name]["data_offsets"][1];
      t->header[name]["data_offsets"] = {b + begin, e + end};
    };
  };
  changed("overlap", offsets(-64, -64), {});
  changed("one byte off", offsets(1, 1), {});
  changed("past the end", offsets(1 << 30, 1 << 30), {});
  changed("backwards", [&](RawTensors* t) { t->header[name]["data_offsets"] = {100, 50}; }, {name});
  changed("negative", [&](RawTensors* t) { t->header[name]["data_offsets"] = {-8, 50}; }, {name});
  changed("overflow", [&](RawTensors* t) { t->header[name]["shape"] = {int64_t{1} << 40, int64_t{1} << 40}; }, {name});
  changed("wrong dtype", [&](RawTensors* t) { t->header[name]["dtype"] = "I32"; }, {name, "I32"});
  changed("unknown dtype", [&](RawTensors* t) { t->header[name]["dtype"] = "Q7"; }, {name, "Q7"});
  changed("wrong shape", [&](RawTensors* t) { t->header[name]["shape"] = {32, 64}; }, {name, "[64, 32]", "[32, 64]"});
  changed("missing tensor",
          [&](RawTensors* t) {
            t->header["model.layers.1.mlp.other.weight"] = t->header[name];
            t->header.erase(name);
          },
          {name});
  changed("unexpected tensor",
          [&](RawTensors* t) {
            t->Add("model.layers.2.mlp.up_proj.weight", {64, 32}, 0, 9);
          },
          {"model.layers.2.mlp.up_proj.weight"});
}

TEST_F(BadInput, WeightsThatAreNotFinite) {
  // Kept, quantised and trained tensors are read in different ways.
  for (const char* name : {"model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", "model.norm.weight"}) {
    for (const float value : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
      RawTensors tensors = tensors_;
      const int64_t begin = tensors.header[name]["data_offsets"][0];
      std::memcpy(tensors.data.data() + begin + 4 * 17, &value, sizeof(value));
      ExpectWeightsRefused("not finite", tensors, {name});
      Write("base/model.safetensors", tensors.Bytes());
      ExpectRefused("not finite, trained whole", {name, "model.safetensors"},
                    {"quantization.format=none", "adapter.type=none", "trainable.weights=all"});
      Write("base/model.safetensors", tensors_.Bytes());
    }
  }
}

TEST_F(BadInput, Tokenizer) {
  const json whole = json::parse(FileContent(Path("base/tokenizer.json")));
  const auto refused = [&](const std::string& what, const std::function<void(json*)>& change) {
    json changed = whole;
    change(&changed);
    Write("base/tokenizer.json", changed.dump());
    ExpectRefused(what, {"tokenizer.json"});
  };
  refused("merge of an unknown token", [](json* t) { (*t)["model"]["merges"] = {"q zz"}; });
  refused("merge without its result", [](json* t) { (*t)["model"]["merges"] = {"a b"}; });
  refused("merge of one part", [](json* t) { (*t)["model"]["merges"] = {"ab"}; });
  refused("merge that is a number", [](json* t) { (*t)["model"]["merges"] = {7}; });
  refused("two tokens of one id", [](json* t) { (*t)["model"]["vocab"]["zz"] = 65; });
  refused("another kind", [](json* t) { (*t)["model"]["type"] = "Unigram"; });
  refused("more tokens than the model", [](json* t) { (*t)["model"]["vocab"]["zz"] = 300; });
  Write("base/tokenizer.json", whole.dump().substr(0, 1000));
  ExpectRefused("cut short", {"tokenizer.json"});
}

TEST_F(BadInput, Config) {
  const auto refused = [&](const std::string& what, const std::function<void(json*)>& change,
                           std::vector<std::string> names) {
    json config = config_;
    change(&config);
    Write("base/config.json", config.dump());
    names.push_back("config.json");
    ExpectRefused(what, names);
  };
  refused("unknown architecture",
          [](json* c) {
            (*c)["architectures"] = {"NewForCausalLM"};
            (*c)["model_type"] = "newest";
          },
          {"newest"});
  refused("heads that do not divide", [](json* c) { (*c)["num_key_value_heads"] = 3; }, {"num_key_value_heads"});
  refused("no layers", [](json* c) { (*c)["num_hidden_layers"] = 0; }, {"num_hidden_layers"});
  refused("negative width", [](json* c) { (*c)["hidden_size"] = -32; }, {"hidden_size"});
  refused("huge width", [](json* c) { (*c)["hidden_size"] = int64_t{1} << 60; }, {"hidden_size"});
  refused("text for a number", [](json* c) { (*c)["hidden_size"] = "wide"; }, {"hidden_size"});
  refused("missing key", [](json* c) { c->erase("intermediate_size"); }, {"intermediate_size"});
  refused("unknown activation", [](json* c) { (*c)["hidden_act"] = "relu7"; }, {"relu7"});
  refused("unknown scaling", [](json* c) { (*c)["rope_scaling"] = {{"type", "newest"}, {"factor", 2.0}}; }, {"newest"});
  Write("base/config.json", "{\"model_type\": ");
  ExpectRefused("malformed", {"config.json"});
}

TEST_F(BadInput, Recipe) {
  const std::string file = "recipe.yaml";
  ExpectRecipeRefused("unknown key", [](json* r) { (*r)["training"]["epoch"] = 1; }, {file, "epoch", "epochs"});
  ExpectRecipeRefused("unknown section", [](json* r) { (*r)["trainings"] = 1; }, {file, "trainings"});
  ExpectRecipeRefused("wrong type", [](json* r) { (*r)["adapter"]["rank"] = "many"; }, {file, "adapter.rank", "many"});
  ExpectRecipeRefused("a list for a number", [](json* r) { (*r)["adapter"]["rank"] = {1, 2}; }, {file, "adapter.rank"});
  ExpectRecipeRefused("impossible value", [](json* r) { (*r)["adapter"]["dropout"] = 1.5; },
                      {file, "adapter.dropout", "1.5"});
  ExpectRecipeRefused("too large", [](json* r) { (*r)["training"]["steps"] = 1e30; }, {file, "training.steps"});
  ExpectRecipeRefused("unknown name", [](json* r) { (*r)["adapter"]["type"] = "lara"; }, {file, "lara", "lora"});
  ExpectRecipeRefused("refused pair", [](json* r) { (*r)["training"]["epochs"] = 1; },
                      {file, "training.epochs", "training.steps"});
  Write("recipe.yaml", "model: [\n");
  ExpectRefused("not YAML", {file});
  Write("recipe.yaml", "");
  ExpectRefused("empty", {file});
}

TEST_F(BadInput, Rows) {
  const std::string good = Rows(3, 1);
  ExpectRowsRefused("malformed line", good + "{\"prompt\": \"a\", \n" + good, {":4:"});
  ExpectRowsRefused("missing column", good + "{\"prompt\": \"a\"}\n", {":4:", "completion"});
  ExpectRowsRefused("wrong type", good + "{\"prompt\": \"a\", \"completion\": 7}\n", {":4:", "completion"});
  ExpectRowsRefused("invalid UTF-8", good + "{\"prompt\": \"a\xff\", \"completion\": \"b\"}\n", {":4:", "UTF-8"});
  ExpectRowsRefused("UTF-16", std::string("\xff\xfe{\0\"\0", 6), {"UTF-16"});
  ExpectRowsRefused("no rows", "", {"no rows"});
  ExpectRowsRefused("blank lines only", "\n\n", {"no rows"});
  ExpectRowsRefused("unknown form", "{\"a\": 1}\n", {":1:"});
  // Every row is longer than a sequence, so none is left.
  json recipe = recipe_;
  recipe["data"]["seq_len"] = 8;
  WriteRecipe(recipe);
  ExpectRefused("all rows too long", {"seq_len"});
  recipe["data"]["too_long"] = "cut";
  WriteRecipe(recipe);
  ExpectRefused("no targets", {"target"});
  recipe["data"]["too_long"] = "fail";
  WriteRecipe(recipe);
  ExpectRefused("a row too long", {"train.jsonl", "seq_len"});
  WriteRecipe(recipe_);
  Write("held.jsonl", good + "{\n");
  ExpectRefused("malformed held-out line", {"held.jsonl:4:"});
}

TEST_F(BadInput, OutputFolder) {
  Write("file", "text");
  ExpectRefused("below a file", {Path("file/run")}, {"output.folder=" + Path("file/run")});
  ExpectRefused("a file", {Path("file")}, {"output.folder=" + Path("file")});
  ExpectRefused("where nobody may write", {"/proc/run"}, {"output.folder=/proc/run"});
  std::filesystem::create_directories(folder_ / "full");
  Write("full/thesis.txt", "text");
  ExpectRefused("not empty", {Path("full"), "not empty"}, {"output.folder=" + Path("full")});
  for (const char* run : {"nowhere", "full", "file"}) {
    const ProgramResult result = ResumeRun(run);
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find(Path(run)), std::string::npos) << result.errors;
  }
}

TEST_F(BadInput, BudgetTooSmall) {
  ExpectRefused("budget", {"memory.device_budget", "100000", "MiB", "activations"}, {"memory.device_budget=100000"},
                /*exit_code=*/3);
}

TEST_F(BadInput, EveryCommandRefusesADamagedModel) {
  const std::vector<std::vector<std::string>> commands = {
      {"eval", Path("base"), "--data=" + Path("held.jsonl"), "--chat_format=plain"},
      {"generate", Path("base"), "--raw", "--prompt=count"},
      {"export", Path("base"), "--out=" + Path("out")},
      {"quantize", Path("base"), "--out=" + Path("out")}};
  const auto expect = [&](const std::string& what, const std::vector<std::string>& words, const std::string& name) {
    SCOPED_TRACE(what + ", " + words[0]);
    const auto before = Files();
    const ProgramResult result = Run(words);
    EXPECT_EQ(result.exit_code, 2) << result.errors;
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find(name), std::string::npos) << result.errors;
    EXPECT_EQ(Files(), before);
  };
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  const auto damaged = [&](const std::string& what, const std::function<void(RawTensors*)>& change) {
    RawTensors tensors = tensors_;
    change(&tensors);
    Write("base/model.safetensors", tensors.Bytes());
    for (const auto& words : commands) expect(what, words, name);
  };
  damaged("missing tensor", [&](RawTensors* t) {
    t->header["rotary_emb.inv_freq"] = t->header[name];
    t->header.erase(name);
  });
  damaged("wrong shape", [&](RawTensors* t) { t->header[name]["shape"] = {32, 64}; });
  damaged("wrong type", [&](RawTensors* t) { t->header[name]["dtype"] = "I32"; });
  damaged("NaN", [&](RawTensors* t) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    std::memcpy(t->data.data() + t->header[name]["data_offsets"][0].get<int64_t>(), &nan, sizeof(nan));
  });
  Write("base/model.safetensors", tensors_.Bytes().substr(0, 5000));
  for (const auto& words : commands) expect("cut short", words, "model.safetensors");
  RawTensors more = tensors_;
  more.Add("model.layers.2.mlp.up_proj.weight", {64, 32}, 0, 9);
  Write("base/model.safetensors", more.Bytes());
  for (const auto& words : commands) expect("unexpected tensor", words, "model.layers.2.mlp.up_proj.weight");
  // Where nothing can be written is told before the work.
  Write("base/model.safetensors", tensors_.Bytes());
  for (const char* command : {"export", "quantize"}) {
    expect("below a file", {command, Path("base"), "--out=" + Path("held.jsonl/out")}, "held.jsonl is not a folder");
  }
}

TEST_F(BadInput, OutputThatCannotBeWritten) {
  for (const std::vector<std::string>& words :
       {std::vector<std::string>{"help"}, {"inspect", Path("base")}, {"eval", "--help"}}) {
    Program program(words, Path("errors.txt"), RLIM_INFINITY, "/dev/full");
    const ProgramResult result = program.Wait();
    EXPECT_EQ(result.exit_code, 1) << words[0];
    EXPECT_EQ(result.Messages(), 1) << result.errors;
    EXPECT_NE(result.errors.find("standard output"), std::string::npos) << result.errors;
  }
}

TEST_F(BadInput, SoundInputRuns) {
  const ProgramResult result = Train();
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.Messages(), 0) << result.errors;
}

}  // namespace
}  // namespace thimble
