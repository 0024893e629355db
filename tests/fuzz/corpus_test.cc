// Every reader over its corpus, whole, cut short and changed in places. A whole input is read, or refused where its
// name begins with refused_; a damaged one may be either, and nothing else may happen. What a fuzzer found stays there.
#include <algorithm>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "data/file.h"
#include "gtest/gtest.h"
#include "tests/fuzz/readers.h"

namespace thimble {
namespace {

namespace fs = std::filesystem;

const char kCorpus[] = THIMBLE_SOURCE_DIR "/tests/fuzz/corpus";

class FuzzCorpusTest : public testing::TestWithParam<FuzzReader> {};

TEST_P(FuzzCorpusTest, RefusesOrReads) {
  const FuzzReader& reader = GetParam();
  std::vector<std::string> files;
  for (const fs::directory_entry& entry :
       fs::directory_iterator(std::string(kCorpus) + "/" + std::string(reader.name))) {
    files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  int whole = 0;
  for (const std::string& file : files) {
    SCOPED_TRACE(file);
    const std::string bytes = ReadFile(file).value();
    ASSERT_LE(bytes.size(), 1u << 16) << "a corpus is small";
    const bool refused = fs::path(file).filename().string().rfind("refused_", 0) == 0;
    EXPECT_EQ(reader.read(bytes), !refused);
    whole += refused ? 0 : 1;
    const size_t step = std::max<size_t>(1, bytes.size() / 24);
    for (size_t at = 0; at < bytes.size(); at += step) {
      reader.read(std::string_view(bytes).substr(0, at));
      std::string changed = bytes;
      changed[at] = static_cast<char>(changed[at] ^ (1 << at % 8));
      reader.read(changed);
      changed[at] = '\xff';
      reader.read(changed);
    }
  }
  EXPECT_GT(whole, 0) << "none that it reads";
}

INSTANTIATE_TEST_SUITE_P(Readers, FuzzCorpusTest, testing::ValuesIn(FuzzReaders()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(FuzzCorpusFolders, BelongToReaders) {
  std::set<std::string> names;
  for (const FuzzReader& reader : FuzzReaders()) names.insert(std::string(reader.name));
  for (const fs::directory_entry& entry : fs::directory_iterator(kCorpus)) {
    EXPECT_EQ(names.count(entry.path().filename().string()), 1u) << entry.path();
  }
}

}  // namespace
}  // namespace thimble
