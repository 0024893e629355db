#include "trainer/schedule.h"

#include <gtest/gtest.h>

namespace thimble {
namespace {

TEST(ScheduleTest, TwoStagesFallToTheSecondPeakAtHalfWhereDecayEnds) {
  ScheduleOptions options;
  options.kind = ScheduleKind::kTwoStage;
  options.total_steps = 1000;
  options.warmup_steps = 100;
  options.second_peak = 0.5;
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 0), 0.01);
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 99), 1);
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 250), 0.75) << "on the line from 1 at the first step to 0 at the last";
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 499), 0.501);
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 500), 0.25);
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 750), 0.125);
  EXPECT_DOUBLE_EQ(ScheduleFactor(options, 1000), 0);
  EXPECT_EQ(DecayFactor(options, 499), 1);
  EXPECT_EQ(DecayFactor(options, 500), 0);
}

TEST(ScheduleTest, OthersKeepWeightDecayToTheEnd) {
  for (const ScheduleKind kind :
       {ScheduleKind::kConstant, ScheduleKind::kLinear, ScheduleKind::kCosine, ScheduleKind::kWsd}) {
    ScheduleOptions options;
    options.kind = kind;
    options.total_steps = 10;
    EXPECT_EQ(DecayFactor(options, 9), 1);
  }
}

}  // namespace
}  // namespace thimble
