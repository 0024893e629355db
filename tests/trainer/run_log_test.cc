// Metrics files, TensorBoard bytes, the progress line, the report and the log that feeds them all.
#include "trainer/run_log.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/escaping.h"
#include "data/file.h"
#include "trainer/progress_line.h"
#include "trainer/report_chart.h"

namespace thimble {
namespace {

using testing::DoubleEq;
using testing::Pointwise;

StepMetrics StepAt(int64_t step) {
  StepMetrics metrics;
  metrics.step = step;
  metrics.epoch = 0.5;
  metrics.loss = 2.0 / static_cast<double>(step);
  metrics.learning_rate = 2e-4;
  metrics.grad_norm = 0.525;
  metrics.tokens = 1000;
  metrics.targets = 600;
  metrics.seconds = 0.5;
  metrics.device_bytes = 512 << 20;
  metrics.process_bytes = int64_t{2150} << 20;
  return metrics;
}

class RunLogTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "runlogXXXXXX";
    folder_ = mkdtemp(pattern.data());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<RunLog> Open(int64_t resumed_step, std::FILE* progress, int64_t log_every = 1) {
    RunLogOptions options;
    options.folder = folder_;
    options.total_steps = 10;
    options.resumed_step = resumed_step;
    options.log_every = log_every;
    options.progress = progress;
    auto log = RunLog::Open(options);
    EXPECT_TRUE(log.ok()) << log.status();
    return std::move(log).value();
  }
  std::string Read(const std::string& name) { return ReadFile(folder_ + "/" + name).value_or("unreadable"); }
  int EventFiles() {
    int count = 0;
    for (const auto& entry : std::filesystem::directory_iterator(folder_)) {
      count += entry.path().filename().string().rfind("events.out.tfevents.", 0) == 0;
    }
    return count;
  }
  std::string folder_;
};

TEST(TensorBoardTest, BytesMatchTheFormatsVectors) {
  EXPECT_EQ(absl::BytesToHexString(TensorBoardHeader(1.0)),
            "1800000000000000a37f4b2209000000000000f03f1a0d627261696e2e4576656e743a3286bf577a");
  EXPECT_EQ(absl::BytesToHexString(TensorBoardScalars(2.0, 3, {{"loss", 0.5}})),
            "1a00000000000000129bd82d09000000000000004010032a0d0a0b0a046c6f7373150000003fbac36b94");
}

TEST_F(RunLogTest, WritesMetricsThatReadBack) {
  std::FILE* progress = std::tmpfile();
  auto log = Open(0, progress);
  ASSERT_TRUE(log->Eval({0, 3.5, 100, 1.5, true}).ok());
  StepMetrics broken = StepAt(1);
  broken.loss = std::numeric_limits<double>::quiet_NaN();
  ASSERT_TRUE(log->Step(broken).ok());
  ASSERT_TRUE(log->Step(StepAt(2)).ok());
  ASSERT_TRUE(log->Sample({2, "Who?", "\"Me\" \xff"}).ok());
  const auto history = ReadMetrics(log->metrics_path());
  ASSERT_TRUE(history.ok()) << history.status();
  ASSERT_EQ(history->steps.size(), 2u);
  EXPECT_TRUE(std::isnan(history->steps[0].loss));
  EXPECT_EQ(history->steps[1].loss, 1.0);
  EXPECT_EQ(history->steps[1].process_bytes, int64_t{2150} << 20);
  EXPECT_EQ(history->steps[1].TokensPerSecond(), 2000);
  ASSERT_EQ(history->evals.size(), 1u);
  EXPECT_EQ(history->evals[0].loss, 3.5);
  EXPECT_TRUE(history->evals[0].best);
  ASSERT_EQ(history->samples.size(), 1u);
  EXPECT_EQ(history->samples[0].answer, "\"Me\" \xef\xbf\xbd");
  EXPECT_EQ(EventFiles(), 1);
  std::fclose(progress);
}

TEST_F(RunLogTest, AResumedRunCutsWhatCameAfterItsCheckpoint) {
  std::FILE* progress = std::tmpfile();
  {
    auto log = Open(0, progress);
    for (int step = 1; step <= 5; ++step) ASSERT_TRUE(log->Step(StepAt(step)).ok());
  }
  std::ofstream(folder_ + "/metrics.jsonl", std::ios::app) << "{\"step\":6,\"lo";  // killed while writing
  {
    auto log = Open(3, progress);
    ASSERT_TRUE(log->Step(StepAt(4)).ok());
    const auto history = ReadMetrics(log->metrics_path());
    ASSERT_TRUE(history.ok()) << history.status();
    ASSERT_EQ(history->steps.size(), 4u);
    EXPECT_EQ(history->steps[3].step, 4);
  }
  EXPECT_EQ(EventFiles(), 2);
  auto log = Open(0, progress);
  EXPECT_EQ(Read("metrics.jsonl"), "");
  std::fclose(progress);
}

TEST_F(RunLogTest, DamagedMetricsNameTheLine) {
  const std::string path = folder_ + "/metrics.jsonl";
  std::ofstream(path) << MetricsLine(StepAt(1)) << "rubbish\n";
  EXPECT_EQ(CutMetrics(path, 5).message(),
            path + ":2: found a line that is not of a run's metrics; remove it to go on");
  EXPECT_EQ(ReadMetrics(path).status().code(), absl::StatusCode::kDataLoss);
  EXPECT_TRUE(CutMetrics(folder_ + "/none.jsonl", 5).ok());
}

TEST_F(RunLogTest, MissingFolderIsAnError) {
  RunLogOptions options;
  options.folder = folder_ + "/nothing";
  EXPECT_EQ(RunLog::Open(options).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(RunLogTest, WritesPlainLinesWhereThereIsNoTerminal) {
  std::FILE* progress = std::fopen((folder_ + "/log").c_str(), "w");
  auto log = Open(0, progress, /*log_every=*/4);
  for (int step = 1; step <= 10; ++step) ASSERT_TRUE(log->Step(StepAt(step)).ok());
  ASSERT_TRUE(log->Eval({10, 1.5, 100, 75, false}).ok());
  log->Note("saved");
  std::fclose(progress);
  EXPECT_EQ(Read("log"),
            " 4/10  loss 0.5000  lr 2.0e-04  norm 0.53  2000 tok/s  2.1 GiB  3s left\n"
            " 8/10  loss 0.2500  lr 2.0e-04  norm 0.53  2000 tok/s  2.1 GiB  1s left\n"
            "10/10  loss 0.2000  lr 2.0e-04  norm 0.53  2000 tok/s  2.1 GiB  0s left\n"
            "step 10  validation loss 1.5000  perplexity 4.48  100 targets  1m15s\n"
            "saved\n");
}

TEST(ProgressLineTest, FitsAnyWidth) {
  StepMetrics metrics = StepAt(1234567);
  metrics.tokens = 123456;
  for (int columns = 1; columns <= 120; ++columns) {
    EXPECT_LE(static_cast<int>(ProgressText(metrics, 9999999, 1e9, columns).size()), columns);
  }
  EXPECT_EQ(ProgressText(StepAt(2), 10, 75, 42), " 2/10  loss 1.0000  2000 tok/s  1m15s left");
  EXPECT_EQ(ProgressText(StepAt(2), 10, -1, 20), " 2/10  loss 1.0000");
}

TEST(ProgressLineTest, TextsOfTimeAndMemory) {
  EXPECT_EQ(DurationText(47.6), "48s");
  EXPECT_EQ(DurationText(725), "12m05s");
  EXPECT_EQ(DurationText(3 * 3600 + 7 * 60), "3h07m");
  EXPECT_EQ(DurationText(2 * 86400 + 4 * 3600), "2d04h");
  EXPECT_EQ(DurationText(std::nan("")), "?");
  EXPECT_EQ(MemoryText(812 << 20), "812 MiB");
  EXPECT_EQ(MemoryText(int64_t{2150} << 20), "2.1 GiB");
}

TEST(ReportTest, TicksAreRoundAndInside) {
  EXPECT_THAT(RoundTicks(0, 1, 5), Pointwise(DoubleEq(), std::vector<double>{0, 0.2, 0.4, 0.6, 0.8, 1}));
  EXPECT_THAT(RoundTicks(-3, 47, 5), Pointwise(DoubleEq(), std::vector<double>{0, 10, 20, 30, 40}));
  EXPECT_THAT(RoundTicks(1e-5, 9e-5, 4), Pointwise(DoubleEq(), std::vector<double>{2e-5, 4e-5, 6e-5, 8e-5}));
  EXPECT_TRUE(RoundTicks(1, 1, 5).empty());
}

TEST(ReportTest, PageHoldsCurvesTablesAndEscapedTexts) {
  MetricsHistory history;
  for (int step = 1; step <= 2000; ++step) history.steps.push_back(StepAt(step));
  history.steps[100].loss = std::numeric_limits<double>::quiet_NaN();
  history.evals = {{0, 3.5, 10, 1, true}, {2000, 1.25, 10, 1, true}};
  history.samples = {{0, "Who?", "<b>"}, {2000, "Who?", "Me & you"}};
  RunReport report;
  report.title = "Run <1>";
  report.tables = {{"Memory plan", {"category", "bytes"}, {{"weights", "1,024"}}}};
  report.settings = "model:\n  path: \"a\"\n";
  const std::string page = ReportHtml(report, history);
  for (const char* text :
       {"<h1>Run &lt;1&gt;</h1>", "Memory plan", "<td>1,024</td>", "path: &quot;a&quot;", "Me &amp; you", "&lt;b&gt;",
        "<b>Loss</b>", "Learning rate", "Gradient norm", "best one, step 2000</span><b>1.2500<"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
  for (const char* text : {"http:", "https:", "src=", "nan", "inf "})
    EXPECT_EQ(page.find(text), std::string::npos) << text;
  EXPECT_LT(page.size(), 120000u);
}

TEST(ReportTest, AnEmptyHistoryStillGivesAPage) {
  const std::string page = ReportHtml({}, {});
  EXPECT_NE(page.find("</html>"), std::string::npos);
  EXPECT_EQ(page.find("<figure>"), std::string::npos);
}

}  // namespace
}  // namespace thimble
