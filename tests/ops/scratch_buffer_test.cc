// Aligned scratch: sizes, parts, and a buffer that grows.
#include "ops/scratch_buffer.h"

#include <gtest/gtest.h>

#include <cstring>

#include "ops/scratch_carver.h"

namespace thimble {
namespace {

TEST(ScratchBufferTest, RoundsToCacheLines) {
  EXPECT_EQ(Aligned(0), 0);
  EXPECT_EQ(Aligned(1), 64);
  EXPECT_EQ(Aligned(64), 64);
  EXPECT_EQ(Aligned(65), 128);
}

TEST(ScratchBufferTest, OwnsAlignedMemoryAndGrowsOnly) {
  ScratchBuffer buffer;
  EXPECT_EQ(buffer.view().bytes, 0);
  for (const int64_t bytes : {1, 100, 5000, 37, 1 << 20}) {
    buffer.Reserve(bytes);
    EXPECT_GE(buffer.bytes(), bytes);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.view().data) % kAlignment, 0u);
    std::memset(buffer.view().data, 1, static_cast<size_t>(buffer.bytes()));
  }
  buffer.Reserve(7);
  EXPECT_EQ(buffer.bytes(), 1 << 20);
}

// Both ways of cutting scratch agree on where parts lie and on what they need.
TEST(ScratchBufferTest, PartsAreAlignedAndDoNotOverlap) {
  ScratchCarver counted;
  counted.Take<float>(3);
  counted.Take<char>(65);
  EXPECT_EQ(counted.used(), 64 + 128);
  const ScratchBuffer buffer(counted.used());
  ScratchCarver carver(buffer.view());
  Scratch rest = buffer.view();
  EXPECT_EQ(carver.Take<float>(3), TakeScratch<float>(&rest, 3));
  EXPECT_EQ(carver.Take<char>(65), TakeScratch<char>(&rest, 65));
  EXPECT_EQ(rest.bytes, 0);
  EXPECT_DEATH(TakeScratch<char>(&rest, 1), "bytes of scratch");
}

}  // namespace
}  // namespace thimble
