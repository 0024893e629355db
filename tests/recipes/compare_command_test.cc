// thimble compare on small models: the figures of eval, sizes, the page.
#include <gmock/gmock.h>

#include <filesystem>

#include "data/file.h"
#include "tests/recipes/small_model.h"

namespace thimble {
namespace {

using testing::HasSubstr;
using testing::Not;

class CompareCommandTest : public SmallModelTest {
 protected:
  void SetUp() override {
    SmallModelTest::SetUp();
    Write("task.jsonl", R"({"context": "who has it?", "choices": ["anna has it.", "a kite."], "answer": 0}
{"context": "where?", "choices": ["no", "at home."], "answer": "B"}
)");
    for (const char* format : {"nf4", "fp4"}) {
      ASSERT_EQ(Thimble({"quantize", Path("base"), std::string("--format=") + format, "--out", Path(format)}), 0)
          << err_;
    }
  }
  std::string Rows() const { return "--data=" + Path("rows.jsonl"); }
};

TEST_F(CompareCommandTest, FiguresAreThoseOfEval) {
  ASSERT_EQ(Thimble({"compare", Path("base"), Path("nf4"), Path("fp4"), Rows(), "--chat_format=plain",
                     "--task=" + Path("task.jsonl"), "--json"}),
            0)
      << err_;
  const nlohmann::json found = Json();
  EXPECT_EQ(found["reference"], Path("base"));
  ASSERT_EQ(found["models"].size(), 3);
  const nlohmann::json &base = found["models"][0], &nf4 = found["models"][1], &fp4 = found["models"][2];
  EXPECT_EQ(base["is_reference"], true);
  EXPECT_FALSE(base.contains("kl_mean"));
  EXPECT_EQ(base["format"], "bf16");
  EXPECT_EQ(nf4["format"], "nf4");
  EXPECT_EQ(fp4["format"], "fp4");
  EXPECT_EQ(base["parameters"], nf4["parameters"]);
  EXPECT_GE(base["bits_per_weight"], 16);
  EXPECT_LT(nf4["bits_per_weight"], base["bits_per_weight"]);
  EXPECT_EQ(nf4["file_bytes"], std::filesystem::file_size(Path("nf4/model.safetensors")));
  EXPECT_GT(nf4["kl_mean"], 0);
  EXPECT_EQ(nf4["tasks"][0]["questions"], 2);
  ASSERT_EQ(Thimble({"eval", Path("nf4"), Rows(), "--chat_format=plain", "--reference=" + Path("base"), "--json"}), 0)
      << err_;
  for (const char* key : {"loss", "kl_mean", "kl_p99", "top1_agreement", "tokens"}) {
    EXPECT_EQ(nf4[key], Json()[key]) << key;
  }
}

TEST_F(CompareCommandTest, TableAndPage) {
  ASSERT_EQ(Thimble({"compare", Path("nf4"), Path("fp4") + "/", "--reference", Path("base"), Rows(),
                     "--chat_format=plain", "--task=" + Path("task.jsonl"), "--html=" + Path("page.html")}),
            0)
      << err_;
  for (const char* part : {"bits/w", "KL mean", "acc_n", "\nnf4 ", "\nfp4 "}) EXPECT_THAT(out_, HasSubstr(part));
  EXPECT_LE(LongestLine(out_.substr(0, out_.rfind("reference:"))), 80u);
  const std::string page = ReadFile(Path("page.html")).value();
  EXPECT_THAT(page, HasSubstr("<svg viewBox"));
  EXPECT_THAT(page, HasSubstr("<title>nf4: "));
  EXPECT_THAT(page, HasSubstr("<td>fp4</td>"));
  for (const char* outside : {"http", "src=", "nan", "inf"}) EXPECT_THAT(page, Not(HasSubstr(outside)));
}

TEST_F(CompareCommandTest, WrongInputIsRefused) {
  const auto refused = [&](const std::vector<std::string>& words, const std::string& part) {
    EXPECT_EQ(Thimble(words), 2) << err_;
    EXPECT_THAT(err_, HasSubstr(part));
  };
  refused({"compare", Path("base")}, "--data=FILE");
  refused({"compare", Rows()}, "MODEL");
  refused({"compare", Path("base"), Path("none"), Rows(), "--chat_format=plain"}, Path("none"));
  refused({"compare", Path("base"), Rows(), "--html=" + Path("none/page.html")}, "--html: no folder");
  Write("nf4/tokenizer.json", "{}");
  refused({"compare", Path("base"), Path("nf4"), Rows(), "--chat_format=plain"}, Path("nf4/tokenizer.json"));
}

}  // namespace
}  // namespace thimble
