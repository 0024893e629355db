// thimble eval and thimble generate on the stories260K asset: figures, keys, answers, errors.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/file.h"
#include "ops/parallel.h"
#include "recipes/command_line.h"
#include "recipes/commands/commands.h"
#include "tests/data/test_folder.h"

namespace thimble {
namespace {

using testing::HasSubstr;
using Json = nlohmann::json;

class EvalCommandTest : public TestFolder {
 protected:
  void SetUp() override {
    TestFolder::SetUp();
    // The model is too small for two.
    threads_ = NumThreads();
    SetNumThreads(1);
    model_ = AssetsFolder() + "models/stories260K";
    if (!std::filesystem::exists(model_)) GTEST_SKIP() << "needs the test assets: " << model_ << " (THIMBLE_ASSETS)";
    reference_ = Json::parse(ReadFile(model_ + "/reference.json").value());
  }
  void TearDown() override {
    SetNumThreads(threads_);
    TestFolder::TearDown();
  }

  int Run(const std::vector<std::string>& words) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunCommandLine(Commands(), words);
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return code;
  }
  Json Eval(const std::string& file, std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"eval", model_, "--json", "--data=" + file});
    EXPECT_EQ(Run(flags), 0) << err_;
    return Json::parse(out_, nullptr, /*allow_exceptions=*/false);
  }
  Json Generate(std::vector<std::string> flags) {
    flags.insert(flags.begin(), {"generate", model_, "--json"});
    EXPECT_EQ(Run(flags), 0) << err_;
    return Json::parse(out_, nullptr, /*allow_exceptions=*/false);
  }
  // One message that says `part`.
  void ExpectRefused(const std::vector<std::string>& words, const std::string& part) {
    EXPECT_EQ(Run(words), 2) << err_;
    EXPECT_EQ(out_, "");
    EXPECT_THAT(err_, HasSubstr(part));
    EXPECT_EQ(err_.find("thimble: "), err_.rfind("thimble: ")) << err_;
  }
  std::string ProbeFile() { return Write("probe.txt", reference_["probe"]["text"].get<std::string>()); }
  // The model with a full stop as its EOS, so that it ends answers.
  std::string ModelThatStops() {
    const std::string copy = Path("stops");
    std::filesystem::create_directories(copy);
    for (const char* name : {"config.json", "model.safetensors", "tokenizer.json"}) {
      std::filesystem::copy_file(model_ + "/" + name, copy + "/" + name);
    }
    std::ofstream(copy + "/tokenizer_config.json")
        << R"({"add_bos_token": true, "bos_token": "<s>", "eos_token": "."})";
    return copy;
  }

  int threads_ = 1;
  std::string model_, out_, err_;
  Json reference_;
};

TEST_F(EvalCommandTest, LossIsTheReferences) {
  const Json probe = reference_["probe"];
  const Json found = Eval(ProbeFile(), {});
  EXPECT_EQ(found["tokens"], probe["ids"].size() - 1);
  EXPECT_EQ(found["tokens_total"], probe["ids"].size());
  EXPECT_EQ(found["rows"], 1);
  EXPECT_NEAR(found["loss"], probe["mean_nll"].get<double>(), 2e-6);
  EXPECT_NEAR(found["perplexity"], std::exp(found["loss"].get<double>()), 1e-9);
  const double bits = found["loss"].get<double>() * found["tokens"].get<double>() / std::log(2.0);
  EXPECT_NEAR(found["bits_per_byte"], bits / static_cast<double>(probe["text"].get<std::string>().size()), 1e-9);
  const Json with_end = Eval(ProbeFile(), {"--eos"});
  EXPECT_EQ(with_end["tokens"], probe["ids"].size());
  EXPECT_GT(with_end["loss"], found["loss"]);
}

TEST_F(EvalCommandTest, RowsDoNotSeeEachOther) {
  const std::string text = reference_["probe"]["text"];
  std::string lines;
  for (int i = 0; i < 5; ++i) lines += Json{{"text", text}}.dump() + "\n";
  const std::string file = Write("rows.jsonl", lines);
  const Json one = Eval(ProbeFile(), {});
  for (const char* batch : {"--batch_tokens=2", "--batch_tokens=100", "--batch_tokens=2048"}) {
    const Json five = Eval(file, {batch});
    EXPECT_EQ(five["tokens"], 5 * one["tokens"].get<int64_t>());
    EXPECT_NEAR(five["loss"], one["loss"].get<double>(), 1e-6) << batch;
  }
  EXPECT_EQ(Eval(file, {"--max_rows=2"})["rows"], 2);
}

TEST_F(EvalCommandTest, WindowsScoreEveryToken) {
  const Json whole = Eval(ProbeFile(), {});
  // One window holds the whole text.
  const Json wide = Eval(ProbeFile(), {"--context=512"});
  EXPECT_EQ(wide["tokens"], whole["tokens"]);
  EXPECT_NEAR(wide["loss"], whole["loss"].get<double>(), 1e-6);
  // Eight tokens see less.
  const Json narrow = Eval(ProbeFile(), {"--context=8"});
  EXPECT_EQ(narrow["tokens"], whole["tokens"]);
  EXPECT_GT(narrow["loss"], whole["loss"].get<double>() + 0.1);
}

TEST_F(EvalCommandTest, DivergenceFromAReference) {
  const Json same = Eval(ProbeFile(), {"--reference=" + model_});
  EXPECT_EQ(same["kl_mean"], 0.0);
  EXPECT_EQ(same["kl_max"], 0.0);
  EXPECT_EQ(same["top1_agreement"], 1.0);
  EXPECT_EQ(same["reference_loss"], same["loss"]);
  const Json rounded = Eval(ProbeFile(), {"--reference=" + model_ + "-bf16"});
  EXPECT_GT(rounded["kl_mean"], 0.0);
  EXPECT_LT(rounded["kl_mean"], 1e-2);
  const std::vector<std::string> ascending = {"kl_median", "kl_p90", "kl_p95", "kl_p99", "kl_p99_9", "kl_max"};
  for (size_t i = 1; i < ascending.size(); ++i) EXPECT_LE(rounded[ascending[i - 1]], rounded[ascending[i]]);
  EXPECT_NEAR(rounded["reference_loss"], rounded["loss"].get<double>(), 0.02);
  EXPECT_NE(rounded["reference_loss"], rounded["loss"]);
}

TEST_F(EvalCommandTest, SlicesAddUpToTheWhole) {
  const std::string text = reference_["probe"]["text"];
  std::string lines;
  for (int i = 0; i < 6; ++i) {
    Json row = {{"text", text.substr(0, 40 * (i + 1))}};
    if (i > 0) row["language"] = i % 2 == 0 ? "even" : "odd";
    lines += row.dump() + "\n";
  }
  const std::string file = Write("rows.jsonl", lines);
  const Json found = Eval(file, {"--data=" + ProbeFile(), "--slice-by=language,length", "--length-buckets=16,32",
                                 "--reference=" + model_ + "-bf16", "--batch_tokens=100"});
  std::vector<std::string> names;
  for (const Json& slice : found["slices"])
    names.push_back(slice["by"].get<std::string>() + " " + slice["name"].get<std::string>());
  EXPECT_THAT(names,
              testing::ElementsAre("file " + file, "file " + Path("probe.txt"), "language (none)", "language even",
                                   "language odd", "length 1-16", "length 17-32", "length 33-"));
  for (const char* by : {"file", "language", "length"}) {
    int64_t rows = 0, tokens = 0, total = 0;
    double loss = 0, kl = 0, agreed = 0, most = 0;
    for (const Json& slice : found["slices"]) {
      if (slice["by"] != by) continue;
      rows += slice["rows"].get<int64_t>();
      tokens += slice["tokens"].get<int64_t>();
      total += slice["tokens_total"].get<int64_t>();
      loss += slice["tokens"].get<double>() * slice["loss"].get<double>();
      kl += slice["tokens_total"].get<double>() * slice["kl_mean"].get<double>();
      agreed += slice["tokens_total"].get<double>() * slice["top1_agreement"].get<double>();
      most = std::max(most, slice["kl_max"].get<double>());
    }
    EXPECT_EQ(rows, found["rows"]);
    EXPECT_EQ(tokens, found["tokens"]);
    EXPECT_EQ(total, found["tokens_total"]);
    EXPECT_NEAR(loss / static_cast<double>(tokens), found["loss"].get<double>(), 1e-9);
    EXPECT_NEAR(kl / static_cast<double>(total), found["kl_mean"].get<double>(), 1e-9);
    EXPECT_NEAR(agreed / static_cast<double>(total), found["top1_agreement"].get<double>(), 1e-9);
    EXPECT_EQ(most, found["kl_max"]);
  }
  // A slice is what an evaluation of its rows alone gives.
  const Json alone = Eval(ProbeFile(), {"--reference=" + model_ + "-bf16"});
  EXPECT_NEAR(found["slices"][1]["loss"].get<double>(), alone["loss"].get<double>(), 1e-6);
  EXPECT_NEAR(found["slices"][1]["kl_p90"].get<double>(), alone["kl_p90"].get<double>(), 1e-6);
  ASSERT_EQ(Run({"eval", model_, "--data=" + file, "--slice-by=language"}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("by language"));
}

TEST_F(EvalCommandTest, ChoicesAreScoredPlainAndByCharacter) {
  const auto losses = [&](const std::string& text) {
    const Json found = Eval(Write("text.jsonl", Json{{"text", text}}.dump() + "\n"), {});
    return found["loss"].get<double>() * found["tokens"].get<double>();
  };
  const std::string context = "Once upon a time, there was a";
  const std::vector<std::string> choices = {"dog", "little girl named Lily", "zebra", "little girl"};
  std::vector<double> plain, by_character;
  for (const std::string& choice : choices) {
    plain.push_back(losses(context + " " + choice) - losses(context));
    by_character.push_back(plain.back() / static_cast<double>(choice.size()));
  }
  const auto best = std::min_element(plain.begin(), plain.end()) - plain.begin();
  const auto best_norm = std::min_element(by_character.begin(), by_character.end()) - by_character.begin();
  ASSERT_NE(best, best_norm);  // else the test shows nothing
  std::string lines;
  for (size_t answer = 0; answer < choices.size(); ++answer) {
    lines += Json{{"context", context}, {"choices", choices}, {"answer", answer}}.dump() + "\n";
  }
  lines += Json{{"context", context}, {"choices", choices}, {"answer", choices[best_norm]}}.dump() + "\n";
  const std::string task = Write("task.jsonl", lines);
  ASSERT_EQ(Run({"eval", model_, "--json", "--task=" + task}), 0) << err_;
  const Json found = Json::parse(out_)["tasks"][0];
  EXPECT_EQ(found["file"], task);
  EXPECT_EQ(found["questions"], 5);
  EXPECT_EQ(found["acc"], 0.2);
  EXPECT_EQ(found["acc_norm"], 0.4);
  EXPECT_NEAR(found["acc_stderr"], 0.2, 1e-12);
  EXPECT_EQ(found["cut"], 0);
  // Packed differently, and beside rows.
  const Json both = Eval(ProbeFile(), {"--task=" + task, "--batch_tokens=2"});
  EXPECT_EQ(both["tasks"][0]["acc_norm"], 0.4);
  EXPECT_TRUE(both.contains("loss"));
  ASSERT_EQ(Run({"eval", model_, "--task=" + task}), 0) << err_;
  EXPECT_THAT(out_, HasSubstr("acc 20.00% +- 20.00, acc_norm 40.00%"));
  EXPECT_THAT(out_, testing::Not(HasSubstr("perplexity")));
}

TEST_F(EvalCommandTest, ExactMatchCountsAnswersThatEndRight) {
  model_ = ModelThatStops();
  // The greedy continuation of the reference is ", there was a little girl named Lily. She ...".
  const std::string file = Write("rows.jsonl",
                                 R"({"prompt": "Once upon a time", "completion": ", there was a little girl named Lily"}
{"prompt": "Once upon a time", "completion": " , there was a little girl named Lily \n"}
{"prompt": "Once upon a time", "completion": ", there was a little girl"}
{"prompt": "Once upon a time", "completion": ", there was a little girl named Tom"}
)");
  const Json found = Eval(file, {"--chat_format=plain", "--exact_match"});
  EXPECT_EQ(found["exact_match_rows"], 4);
  EXPECT_EQ(found["exact_match_correct"], 2);
  EXPECT_EQ(found["exact_match"], 0.5);
  EXPECT_EQ(found["exact_match_too_long"], 0);
  // Cut off where the expected answer ends is not an answer.
  EXPECT_EQ(Eval(file, {"--chat_format=plain", "--exact_match", "--max_new_tokens=3"})["exact_match_correct"], 0);
}

TEST_F(EvalCommandTest, WrongInputIsRefused) {
  const std::string chat = Write("chat.jsonl", R"({"messages": [{"role": "user", "content": "Who?"}]})"
                                               "\n");
  const std::string nothing = Write("empty.jsonl", "");
  const std::string probe = "--data=" + ProbeFile();
  ExpectRefused({"eval", model_}, "--data=FILE");
  ExpectRefused({"eval", model_, "--data=" + Path("none.jsonl")}, Path("none.jsonl"));
  ExpectRefused({"eval", Path("none"), probe}, Path("none"));
  ExpectRefused({"eval", model_, "--data=" + nothing}, nothing);
  ExpectRefused({"eval", model_, "--data=" + chat}, "no chat template");
  ExpectRefused({"eval", model_, "--data=" + chat, "--chat_format=plain"}, "no targets");
  ExpectRefused({"eval", model_, "--data=" + chat, "--chat_format=plains"}, "unknown chat format 'plains'");
  ExpectRefused({"eval", model_, probe, "--context=1"}, "--context: found 1");
  ExpectRefused({"eval", model_, probe, "--slice-by=language"}, "no row has a column 'language'");
  ExpectRefused({"eval", model_, probe, "--slice-by=length", "--length-buckets=9,9"}, "--length_buckets: found '9,9'");
  ExpectRefused({"eval", model_, probe, "--task=" + Path("none.jsonl")}, Path("none.jsonl"));
  ExpectRefused({"eval", model_, "--task=" + chat}, "chat.jsonl:1: missing key 'context'");
  const std::string task = Write("task.jsonl", R"({"context": "", "choices": ["a", "b"], "answer": 0})");
  ExpectRefused({"eval", model_, "--task=" + task, "--reference=" + model_}, "--data=FILE");
  ExpectRefused({"eval", model_, "--task=" + task, "--slice-by=length"}, "--data=FILE");
  ExpectRefused({"eval", model_, probe, "--context=513"}, "context is 512");
  ExpectRefused({"eval", model_, probe, "--exact_match"}, "plain text");
  ExpectRefused({"eval", model_, probe, "--form=poems"}, "poems");
  std::string book;
  for (int i = 0; i < 60; ++i) book += reference_["probe"]["text"].get<std::string>() + "\n";
  ExpectRefused({"eval", model_, "--data=" + Write("book.txt", book)}, "--context=");
}

TEST_F(EvalCommandTest, GenerateGivesTheReferencesText) {
  const Json greedy = reference_["greedy"];
  const std::string count = "--max_new_tokens=" + std::to_string(greedy["ids"].size());
  const std::string prompt = "--prompt=" + greedy["prompt"].get<std::string>();
  const Json found = Generate({prompt, count});
  EXPECT_EQ(found["tokens"], greedy["ids"]);
  EXPECT_EQ(found["prompt_tokens"], greedy["prompt_ids"].size());
  EXPECT_EQ(found["logprobs"].size(), greedy["ids"].size());
  for (const Json& logprob : found["logprobs"]) EXPECT_LE(logprob.get<double>(), 0);
  EXPECT_EQ(found["stopped"], false);
  EXPECT_THAT(err_, HasSubstr("no chat template"));
  ASSERT_EQ(Run({"generate", model_, "--raw", prompt, count}), 0) << err_;
  EXPECT_EQ(out_, found["text"].get<std::string>() + "\n");
  const std::string file = Write("prompt.txt", greedy["prompt"].get<std::string>() + "\n");
  EXPECT_EQ(Generate({"--file=" + file, count})["tokens"], greedy["ids"]);
}

TEST_F(EvalCommandTest, TheSameSeedDrawsTheSameText) {
  const std::vector<std::string> flags = {"--raw", "--prompt=One day", "--temperature=1", "--max_new_tokens=24"};
  std::vector<std::string> seven = flags, eight = flags;
  seven.push_back("--seed=7");
  eight.push_back("--seed=8");
  const Json first = Generate(seven);
  EXPECT_EQ(Generate(seven), first);
  EXPECT_NE(Generate(eight)["tokens"], first["tokens"]);
  seven.push_back("--top_k=1");
  EXPECT_EQ(Generate(seven)["tokens"], Generate({"--raw", "--prompt=One day", "--max_new_tokens=24"})["tokens"]);
}

TEST_F(EvalCommandTest, GenerateStopsAndRefuses) {
  const std::string stops = ModelThatStops();
  ASSERT_EQ(Run({"generate", stops, "--prompt=Once upon a time", "--json"}), 0) << err_;
  const Json found = Json::parse(out_);
  EXPECT_EQ(found["text"], ", there was a little girl named Lily");
  EXPECT_EQ(found["stopped"], true);
  std::string longer;
  for (int i = 0; i < 60; ++i) longer += reference_["probe"]["text"].get<std::string>() + "\n";
  ExpectRefused({"generate", model_, "--raw", "--prompt=" + longer}, "context is 512");
  ExpectRefused({"generate", model_, "--prompt=Who?", "--chat_format=chatml"}, "chatml");
  ExpectRefused({"generate", model_, "--prompt=Who?", "--temperature=-1"}, "--temperature");
  ExpectRefused({"generate", model_, "--prompt=Who?", "--temperature=1", "--top_p=0"}, "--top_p");
  ExpectRefused({"generate", model_, "--prompt=Who?", "--top_k=5"}, "--temperature above 0");
  ExpectRefused({"generate", model_, "--prompt=Who?", "--raw", "--system=Be kind."}, "--raw");
}

}  // namespace
}  // namespace thimble
