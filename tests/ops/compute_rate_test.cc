#include "ops/compute_rate.h"

#include <cstdlib>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "ops/cpu_level.h"
#include "ops/matmul_bf16.h"
#include "tests/ops/cpu_levels.h"

namespace thimble {
namespace {

TEST(ComputeRateTest, ChoosesWhatItMeasured) {
  const ComputeRates rates = MeasureComputeRates();
  EXPECT_GT(rates.f32_gflops, 0);
  EXPECT_GT(rates.bf16_gflops, 0);
  const bool native = ActiveBf16Path() == Bf16Path::kDot || ActiveBf16Path() == Bf16Path::kTiles;
  EXPECT_EQ(rates.choice == Compute::kBF16, native && rates.bf16_gflops >= 1.1 * rates.f32_gflops);
  EXPECT_THAT(rates.reason, testing::StartsWith(rates.choice == Compute::kBF16 ? "bf16: " : "f32: "));
}

TEST(CpuLevelTest, FollowsTheForcedLevel) {
  const CpuLevel best = ActiveCpuLevel();
  ForEachCpuLevel([&](const std::string& name) {
    const CpuLevel expected = name == "AMX"                ? CpuLevel::kAmx
                              : name.rfind("AVX3", 0) == 0 ? CpuLevel::kAvx512
                              : name == "AVX2"             ? CpuLevel::kAvx2
                                                           : CpuLevel::kGeneric;
    EXPECT_EQ(ActiveCpuLevel(), expected) << name;
    EXPECT_LE(ActiveCpuLevel(), best);
    if (expected < CpuLevel::kAvx512) {
      EXPECT_EQ(ActiveBf16Path(), Bf16Path::kRounded);
    }
  });
  EXPECT_EQ(ActiveCpuLevel(), best);
}

TEST(CpuLevelTest, IsTheEnvironmentsOrLess) {
  const char* name = std::getenv("THIMBLE_CPU");
  if (name == nullptr || *name == '\0') GTEST_SKIP() << "THIMBLE_CPU is not set";
  for (const CpuLevel level : {CpuLevel::kGeneric, CpuLevel::kAvx2, CpuLevel::kAvx512, CpuLevel::kAmx}) {
    if (CpuLevelName(level) == name) {
      EXPECT_LE(ActiveCpuLevel(), level);
    }
  }
}

}  // namespace
}  // namespace thimble
