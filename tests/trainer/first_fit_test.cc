// First fit against the same rule spelt out block by block.
#include "trainer/first_fit.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace thimble {
namespace {

// The lowest offset at which a block meets none of those placed before that live when it does.
std::vector<int64_t> PlaceOneByOne(const std::vector<LivingBlock>& blocks, const std::vector<int32_t>& order) {
  std::vector<int64_t> offsets(blocks.size(), 0);
  std::vector<int32_t> placed;
  for (int32_t index : order) {
    const LivingBlock& block = blocks[index];
    if (block.bytes == 0) continue;
    const auto meets = [&](int64_t offset, int32_t other) {
      const LivingBlock& there = blocks[other];
      return there.last_step >= block.first_step && there.first_step <= block.last_step &&
             offsets[other] < offset + block.bytes && offset < offsets[other] + there.bytes;
    };
    int64_t best = 0;
    // The lowest place is 0 or the end of another block.
    std::vector<int64_t> candidates = {0};
    for (int32_t other : placed) candidates.push_back(offsets[other] + blocks[other].bytes);
    std::sort(candidates.begin(), candidates.end());
    for (int64_t candidate : candidates) {
      best = candidate;
      if (std::none_of(placed.begin(), placed.end(), [&](int32_t other) { return meets(candidate, other); })) break;
    }
    offsets[index] = best;
    placed.push_back(index);
  }
  return offsets;
}

TEST(FirstFitTest, EqualsTheRuleSpeltOut) {
  std::mt19937 random(7);
  const auto uniform = [&random](int64_t low, int64_t high) {
    return std::uniform_int_distribution<int64_t>(low, high)(random);
  };
  for (int round = 0; round < 300; ++round) {
    SCOPED_TRACE(absl::StrCat("round ", round));
    const int64_t steps = uniform(1, 70);
    const int64_t longest = uniform(0, steps - 1);
    const int64_t largest = uniform(0, 3) == 0 ? 3 : 1000;
    std::vector<LivingBlock> blocks(uniform(0, 120));
    for (LivingBlock& block : blocks) {
      block.first_step = static_cast<int32_t>(uniform(0, steps - 1));
      block.last_step = static_cast<int32_t>(std::min(steps - 1, block.first_step + uniform(0, longest)));
      block.bytes = uniform(0, largest);
    }
    std::vector<int32_t> order(blocks.size());
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random);
    const std::vector<int64_t> expected = PlaceOneByOne(blocks, order);
    std::vector<int64_t> offsets;
    const int64_t size = PlaceFirstFit(blocks, order, &offsets);
    EXPECT_EQ(offsets, expected);
    int64_t end = 0;
    for (size_t i = 0; i < blocks.size(); ++i) end = std::max(end, expected[i] + blocks[i].bytes);
    EXPECT_EQ(size, end);
    EXPECT_EQ(PlaceFirstFit(blocks, order, &offsets, end + 1), end);
    if (end > 0) {
      EXPECT_EQ(PlaceFirstFit(blocks, order, &offsets, end), end) << "not below the limit";
    }
  }
}

}  // namespace
}  // namespace thimble
