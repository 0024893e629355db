// Runs a test at every CPU level that this machine has: the Highway targets, and the best of them with AMX.
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "gtest/gtest.h"
#include "hwy/targets.h"
#include "ops/cpu_level.h"

namespace thimble {

// Calls body(name of the level) with dynamic dispatch held to one level after another. AMX comes last, as "AMX".
template <typename Body>
void ForEachCpuLevel(const Body& body) {
  const bool amx = HasAmx();
  AllowAmxForTest(false);
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    body(std::string(hwy::TargetName(target)));
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().DeInit();
  AllowAmxForTest(amx);
  if (amx) body(std::string("AMX"));
}

// run() returns every output of an op as floats; they must have the same bits at every level.
template <typename Run>
void ExpectSameBitsAtEveryCpuLevel(const Run& run) {
  const std::vector<float> best = run();
  ASSERT_FALSE(best.empty());
  ForEachCpuLevel([&](const std::string& level) {
    const std::vector<float> other = run();
    ASSERT_EQ(best.size(), other.size());
    EXPECT_EQ(std::memcmp(best.data(), other.data(), best.size() * sizeof(float)), 0) << level;
  });
}

}  // namespace thimble
