// thimble tokenize with a tokenizer of a few tokens.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "recipes/commands/commands.h"

namespace thimble {
namespace {

class TokenizeCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "tokenizeXXXXXX";
    folder_ = mkdtemp(pattern.data());
    std::ofstream(folder_ + "/tokenizer.json") << R"({"version":"1.0","added_tokens":[],"normalizer":null,
      "pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false},
      "post_processor":null,"decoder":{"type":"ByteLevel"},
      "model":{"type":"BPE","vocab":{"a":0,"b":1,"ab":2},"merges":["a b"]}})";
    std::ofstream(folder_ + "/text") << "abba";
    std::ofstream(folder_ + "/ids") << "[2, 1\n0]";
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  int Tokenize(std::vector<std::string> words) {
    words.insert(words.begin(), {"tokenize", folder_});
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    const int code = RunCommandLine(Commands(), words);
    out_ = testing::internal::GetCapturedStdout();
    err_ = testing::internal::GetCapturedStderr();
    return code;
  }
  std::string folder_, out_, err_;
};

TEST_F(TokenizeCommandTest, EncodesAndDecodes) {
  EXPECT_EQ(Tokenize({"--file=" + folder_ + "/text"}), 0) << err_;
  EXPECT_EQ(out_, "2 1 0\n");
  EXPECT_EQ(Tokenize({"--file=" + folder_ + "/text", "--json"}), 0) << err_;
  EXPECT_EQ(out_, "{\"tokens\":[2,1,0]}\n");
  EXPECT_EQ(Tokenize({"--file=" + folder_ + "/ids", "--decode"}), 0) << err_;
  EXPECT_EQ(out_, "abba");
}

TEST_F(TokenizeCommandTest, RefusesWhatIsNoTokenId) {
  EXPECT_EQ(Tokenize({"--file=" + folder_ + "/text", "--decode"}), 2);
  EXPECT_EQ(err_, "thimble: " + folder_ + "/text: found 'abba', expected token ids from 0 to 2\n");
  EXPECT_EQ(Tokenize({"--file=" + folder_ + "/none"}), 2);
}

}  // namespace
}  // namespace thimble
