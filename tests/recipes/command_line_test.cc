// The command line's frame: flags, help, errors with the nearest name, exit codes; and the commands help and inspect.
#include "recipes/command_line.h"

#include <gflags/gflags.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "recipes/commands/commands.h"
#include "recipes/commands/flags.h"
#include "recipes/recipe_help.h"

DEFINE_int64(test_count, 7, "How many.");
DEFINE_bool(test_loud, true, "Whether to be loud.");
DEFINE_string(test_word, "", "A word, many of them, to see how a description that is longer than a line wraps.");

namespace thimble {
namespace {

struct Outcome {
  int code;
  std::string out, err;
};

Outcome RunWords(const std::vector<Command>& commands, const std::vector<std::string>& words) {
  testing::internal::CaptureStdout();
  testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = RunCommandLine(commands, words);
  outcome.out = testing::internal::GetCapturedStdout();
  outcome.err = testing::internal::GetCapturedStderr();
  return outcome;
}

// Prints what it was given.
Command EchoCommand() {
  Command command;
  command.name = "echo";
  command.summary = "Print the arguments.";
  command.usage = "WHAT";
  command.description = "Prints what it was given.";
  command.example = "  thimble echo this";
  command.min_arguments = 1;
  command.max_arguments = 2;
  command.flags = {"test_count", "test_loud", "test_word", "set"};
  command.repeated_flags = {"set"};
  command.run = [](const CommandLine& line) -> absl::Status {
    std::printf("%ld %d '%s'", static_cast<long>(FLAGS_test_count), FLAGS_test_loud, FLAGS_test_word.c_str());
    for (const std::string& argument : line.arguments) std::printf(" <%s>", argument.c_str());
    for (const std::string& value : line.Values("set")) std::printf(" [%s]", value.c_str());
    if (line.arguments[0] == "full") return absl::ResourceExhaustedError("needs 9 bytes, budget 8");
    return line.arguments[0] == "broken" ? absl::InternalError("broke") : absl::OkStatus();
  };
  return command;
}

Outcome Echo(std::vector<std::string> words) {
  words.insert(words.begin(), "echo");
  return RunWords({EchoCommand(), HelpCommand()}, words);
}

TEST(CommandLineTest, ReadsFlagsInEveryForm) {
  EXPECT_EQ(Echo({"a"}).out, "7 1 '' <a>");
  EXPECT_EQ(Echo({"--test_count=3", "a", "--test_word", "--x", "b"}).out, "3 1 '--x' <a> <b>");
  EXPECT_EQ(Echo({"--notest_loud", "--test-count", "-4", "--", "--b"}).out, "-4 0 '' <--b>");
  EXPECT_EQ(Echo({"--test_loud=false", "-", "-test_count=1"}).out, "1 0 '' <->");
  EXPECT_EQ(Echo({"--set", "a=1", "x", "--set=b=2=3"}).out, "7 1 '' <x> [a=1] [b=2=3]");
  EXPECT_EQ(Echo({"a"}).out, "7 1 '' <a>") << "flags must have their defaults again";
}

TEST(CommandLineTest, WrongUseIsExplainedWithTheNearestName) {
  const auto error = [](const std::vector<std::string>& words) {
    const Outcome outcome = Echo(words);
    EXPECT_EQ(outcome.code, kExitWrongInput);
    EXPECT_EQ(outcome.out, "");
    return outcome.err;
  };
  EXPECT_EQ(error({"a", "--test_cuont=3"}),
            "thimble: unknown flag --test_cuont; did you mean --test_count? See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "--zzz"}), "thimble: unknown flag --zzz. See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "--json"}), "thimble: unknown flag --json. See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "--test_count=x"}),
            "thimble: --test_count: found 'x', expected a whole number. See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "--test_loud=maybe"}),
            "thimble: --test_loud: found 'maybe', expected true or false. See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "--test_count"}),
            "thimble: --test_count has no value, expected --test_count=N. See: thimble echo --help\n");
  EXPECT_EQ(error({}), "thimble: missing argument, expected: thimble echo WHAT. See: thimble echo --help\n");
  EXPECT_EQ(error({"a", "b", "c"}),
            "thimble: 'c' is one argument too many, expected: thimble echo WHAT. See: thimble echo --help\n");
}

TEST(CommandLineTest, UnknownCommandsNameTheNearest) {
  const Outcome typo = RunWords({EchoCommand()}, {"ehco"});
  EXPECT_EQ(typo.code, kExitWrongInput);
  EXPECT_EQ(typo.err, "thimble: unknown command 'ehco'; did you mean 'echo'? See: thimble help\n");
  EXPECT_EQ(RunWords({EchoCommand()}, {"zzz"}).err, "thimble: unknown command 'zzz'. See: thimble help\n");
  EXPECT_EQ(RunWords({EchoCommand()}, {"--set=a"}).err,
            "thimble: expected a command before --set=a. See: thimble help\n");
}

TEST(CommandLineTest, ExitCodesFollowTheStatus) {
  EXPECT_EQ(Echo({"a"}).code, 0);
  EXPECT_EQ(Echo({"broken"}).code, 1);
  EXPECT_EQ(Echo({"full"}).code, 3);
  EXPECT_EQ(Echo({"full"}).err, "thimble: needs 9 bytes, budget 8\n");
  EXPECT_EQ(ExitCodeOf(absl::NotFoundError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::DataLossError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::PermissionDeniedError("")), 2);
  EXPECT_EQ(ExitCodeOf(absl::CancelledError("")), 130);
  EXPECT_EQ(ExitCodeOf(absl::UnknownError("")), 1);
}

TEST(CommandLineTest, HelpPageOfACommand) {
  const Outcome outcome = Echo({"a", "--help"});
  EXPECT_EQ(outcome.code, 0);
  EXPECT_EQ(outcome.out,
            "thimble echo WHAT\n"
            "\n"
            "Prints what it was given.\n"
            "\n"
            "Flags:\n"
            "  --test_count=N      How many. Default: 7.\n"
            "  --test_loud         Whether to be loud. On by default; --notest_loud turns it\n"
            "                      off.\n"
            "  --test_word=TEXT    A word, many of them, to see how a description that is\n"
            "                      longer than a line wraps.\n"
            "  --set=TEXT          Override a recipe's option: --set training.steps=100. May\n"
            "                      be given many times.\n"
            "  --help              This page.\n"
            "\n"
            "Example:\n"
            "  thimble echo this\n");
}

size_t LongestLine(const std::string& text) {
  std::istringstream lines(text);
  size_t longest = 0;
  for (std::string line; std::getline(lines, line);) longest = std::max(longest, line.size());
  return longest;
}

TEST(CommandLineTest, EveryCommandHasAHelpPageOfAtMost80Columns) {
  for (const Command& command : Commands()) {
    const std::string help = CommandHelp(command);
    EXPECT_NE(help.find("Example:\n  thimble " + command.name), std::string::npos) << help;
    EXPECT_LE(LongestLine(help), 80u) << help;
    EXPECT_NE(ProgramHelp(Commands()).find("\n  " + command.name + " "), std::string::npos);
  }
}

TEST(HelpCommandTest, PrintsRecipeOptions) {
  EXPECT_EQ(RunWords(Commands(), {"help", "recipe.adapter.rank"}).out,
            "  adapter.rank                a whole number from 1 to 4096. Default: 16.\n"
            "      Rank of the adapter: 8 to 64 for style and format, more for knowledge.\n"
            "      Cost: adapter, gradient and optimiser memory grow with it.\n");
  const std::string all = RunWords(Commands(), {"help", "recipe"}).out;
  for (const char* key :
       {"  compute ", "  model.config.rope_theta ", "  output.export.max_kl ", "  data.columns.text "}) {
    EXPECT_NE(all.find(key), std::string::npos) << key;
  }
  EXPECT_LE(LongestLine(all), 100u);
  const Outcome typo = RunWords(Commands(), {"help", "recipe.adapter.rnak"});
  EXPECT_EQ(typo.code, kExitWrongInput);
  EXPECT_EQ(typo.err,
            "thimble: no recipe option 'adapter.rnak'; did you mean 'recipe.adapter.rank'? See: thimble help recipe\n");
  EXPECT_EQ(RunWords(Commands(), {"help", "inspct"}).err,
            "thimble: no help for 'inspct'; did you mean 'inspect'? See: thimble help\n");
  EXPECT_EQ(RunWords(Commands(), {"help", "recipe.adapter.rank.x"}).code, kExitWrongInput);
}

class InspectCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "inspectXXXXXX";
    folder_ = mkdtemp(pattern.data());
    const std::string header = R"({"model.layers.0.w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},)"
                               R"("model.layers.1.w":{"dtype":"F32","shape":[1,2],"data_offsets":[8,16]},)"
                               R"("n":{"dtype":"BF16","shape":[2],"data_offsets":[16,20]}})";
    std::ofstream file(folder_ + "/model.safetensors", std::ios::binary);
    const uint64_t size = header.size();
    file.write(reinterpret_cast<const char*>(&size), 8);
    file << header << std::string(20, '\0');
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_;
};

TEST_F(InspectCommandTest, ListsTensorsOfAFile) {
  const Outcome folded = RunWords(Commands(), {"inspect", folder_ + "/model.safetensors"});
  EXPECT_EQ(folded.code, 0) << folded.err;
  EXPECT_EQ(folded.out,
            "model.layers.*.w  F32 [1, 2] x2  0.0 MiB\n"
            "n                 BF16 [2]  0.0 MiB\n"
            "\n"
            "F32: 2 tensors, 4 elements, 0.0 MiB\n"
            "BF16: 1 tensors, 2 elements, 0.0 MiB\n");
  const Outcome all = RunWords(Commands(), {"inspect", "--all", folder_ + "/model.safetensors"});
  EXPECT_NE(all.out.find("model.layers.1.w  F32 [1, 2]  0.0 MiB\n"), std::string::npos) << all.out;
}

TEST_F(InspectCommandTest, PrintsAFolderAsJson) {
  std::ofstream(folder_ + "/config.json") << R"({"hidden_size": 64})";
  const Outcome outcome = RunWords(Commands(), {"inspect", "--json", folder_});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  const nlohmann::json json = nlohmann::json::parse(outcome.out, nullptr, false);
  ASSERT_FALSE(json.is_discarded()) << outcome.out;
  EXPECT_EQ(json["config"]["hidden_size"], 64);
  EXPECT_EQ(json["dtypes"]["F32"]["bytes"], 16);
  EXPECT_EQ(json["tensors"].size(), 3u);
  EXPECT_EQ(json["tensors"][2]["name"], "n");
  EXPECT_EQ(json["tensors"][2]["file"], "model.safetensors");
}

TEST_F(InspectCommandTest, ResolvesARecipe) {
  const std::vector<std::string> words = {"inspect", THIMBLE_SOURCE_DIR "/recipes/qlora.yaml", "--set",
                                          "adapter.rank=32"};
  const Outcome text = RunWords(Commands(), words);
  EXPECT_EQ(text.code, 0) << text.err;
  EXPECT_NE(text.out.find("adapter:\n  type: lora\n  rank: 32\n"), std::string::npos) << text.out;
  std::vector<std::string> with_json = words;
  with_json.push_back("--json");
  const nlohmann::json json = nlohmann::json::parse(RunWords(Commands(), with_json).out, nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["adapter"]["rank"], 32);
  EXPECT_EQ(json["training"]["steps"], nullptr);
}

TEST_F(InspectCommandTest, RefusesWhatItDoesNotKnow) {
  EXPECT_EQ(RunWords(Commands(), {"inspect", folder_ + "/nothing"}).code, kExitWrongInput);
  std::filesystem::create_directory(folder_ + "/empty");
  EXPECT_EQ(RunWords(Commands(), {"inspect", folder_ + "/empty"}).err,
            "thimble: " + folder_ +
                "/empty: expected a Hugging Face folder, found neither config.json nor "
                "*.safetensors\n");
  EXPECT_EQ(RunWords(Commands(), {"inspect", folder_ + "/model.safetensors", "--set", "a=b"}).code, kExitWrongInput);
}

}  // namespace
}  // namespace thimble
