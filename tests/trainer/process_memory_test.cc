// What a process may have: machine, control groups of both versions, and what a plan is told of it.
#include "trainer/process_memory.h"

#include <filesystem>
#include <fstream>
#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/trainer/tiny_model.h"
#include "trainer/run_plan.h"

namespace thimble {
namespace {

using testing::HasSubstr;

constexpr int64_t kGiB = int64_t{1} << 30;

class ProcessMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    Write("/proc/meminfo",
          "MemTotal:       16777216 kB\nMemFree: 1 kB\nMemAvailable:   8388608 kB\nSwapTotal: 1048576 kB\n");
    Write("/proc/self/status", "Name:\tthimble\nVmRSS:\t 1048576 kB\n");
  }
  void Write(const std::string& name, const std::string& text) const {
    std::filesystem::create_directories(std::filesystem::path(folder_.path() + name).parent_path());
    std::ofstream(folder_.path() + name) << text;
  }
  MachineMemory Read() const { return ReadMachineMemory(folder_.path()); }

  TempFolder folder_;
};

TEST_F(ProcessMemoryTest, TheMachine) {
  EXPECT_EQ(Read().limit_bytes, 17 * kGiB);
  EXPECT_EQ(Read().limited_by, "this machine has");
  EXPECT_EQ(Read().available_bytes, 9 * kGiB) << "what the process has counts as available to it";
}

TEST_F(ProcessMemoryTest, TheSmallestOfNestedGroups) {
  Write("/proc/self/cgroup", "0::/jobs/train\n");
  Write("/sys/fs/cgroup/jobs/train/memory.max", "max\n");
  Write("/sys/fs/cgroup/jobs/train/memory.current", "1000\n");
  EXPECT_EQ(Read().limit_bytes, 17 * kGiB);
  Write("/sys/fs/cgroup/jobs/memory.max", std::to_string(4 * kGiB) + "\n");
  Write("/sys/fs/cgroup/jobs/memory.current", std::to_string(kGiB) + "\n");
  EXPECT_EQ(Read().limit_bytes, 4 * kGiB);
  EXPECT_EQ(Read().limited_by, "the control group allows");
  EXPECT_EQ(Read().available_bytes, 3 * kGiB + kGiB);
}

TEST_F(ProcessMemoryTest, GroupsOfVersionOne) {
  Write("/proc/self/cgroup", "5:cpu:/x\n4:memory:/jobs\n0::/\n");
  Write("/sys/fs/cgroup/memory/jobs/memory.limit_in_bytes", std::to_string(2 * kGiB));
  Write("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712");
  EXPECT_EQ(Read().limit_bytes, 2 * kGiB);
}

TEST_F(ProcessMemoryTest, NothingKnownIsNoLimit) {
  TempFolder empty;
  EXPECT_EQ(ReadMachineMemory(empty.path()).limit_bytes, 0);
  EXPECT_GT(ReadMachineMemory().limit_bytes, 0) << "of the machine that runs this";
  EXPECT_GT(ReadMachineMemory().available_bytes, 0);
}

TEST_F(ProcessMemoryTest, APlanAboveItIsRefusedOrWarnedOf) {
  RunPlan plan;
  std::string warning;
  plan.process_bytes = 17 * kGiB;
  EXPECT_TRUE(CheckMachine(plan, Read(), &warning).ok());
  EXPECT_THAT(warning, HasSubstr("9216.0 MiB are free"));
  plan.process_bytes += 1;
  const absl::Status refused = CheckMachine(plan, Read(), &warning);
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()), HasSubstr("18253611009 bytes"));
  EXPECT_THAT(std::string(refused.message()), HasSubstr("this machine has 18253611008"));
  plan.process_bytes = kGiB;
  plan.budget_bytes = 16 * kGiB;
  EXPECT_TRUE(CheckMachine(plan, Read(), &warning).ok());
  EXPECT_EQ(warning, "");
  plan.host.budget_bytes = 2 * kGiB;
  EXPECT_TRUE(CheckMachine(plan, Read(), &warning).ok());
  EXPECT_THAT(warning, HasSubstr("budgets state 18432.0 MiB, this machine has 17408.0 MiB"));
  EXPECT_TRUE(CheckMachine(plan, MachineMemory(), &warning).ok());
  EXPECT_EQ(warning, "");
}

// More than any processor can address.
TEST(AddressSpaceTest, WhatTheSystemRefusesIsAnError) {
  constexpr int64_t kTooMuch = int64_t{1} << 60;
  const absl::Status host = MakeHostTier(kTooMuch).status();
  EXPECT_EQ(host.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(host.message()), HasSubstr("1152921504606846976 bytes of address space for the host tier"));
  EXPECT_FALSE(Arena(kTooMuch).ok());
  EXPECT_TRUE(Arena(0).ok());
  Store store;
  store.Add("large", kTooMuch / 8, 1, Category::kWeights);
  EXPECT_EQ(store.TakeMemory().code(), absl::StatusCode::kResourceExhausted);
}

}  // namespace
}  // namespace thimble
