// The picture of a plan.
#include "trainer/run_plan.h"

#include <algorithm>

#include "gtest/gtest.h"

namespace thimble {
namespace {

TEST(RunPlanTest, TheChartKeepsThePeakOfALongTape) {
  RunPlan plan;
  plan.live_bytes.assign(12345, 1 << 20);
  plan.live_bytes[7777] = 64 << 20;
  plan.arena_bytes = 64 << 20;
  plan.planned_bytes = 164 << 20;
  const Chart chart = MemoryChart(plan);
  ASSERT_EQ(chart.series.size(), 2u);
  const auto highest = [](const ChartSeries& series) {
    return std::max_element(series.points.begin(), series.points.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; });
  };
  EXPECT_EQ(highest(chart.series[0])->second, 164);
  EXPECT_EQ(highest(chart.series[1])->second, 64);
  EXPECT_NEAR(highest(chart.series[1])->first, 7777, 31);
  EXPECT_LE(chart.series[1].points.size(), 400u);
  EXPECT_NE(ChartHtml(chart).find("<path"), std::string::npos);
  EXPECT_EQ(ChartHtml(MemoryChart(RunPlan())), "") << "no steps, no picture";
}

}  // namespace
}  // namespace thimble
