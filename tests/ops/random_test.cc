#include "ops/random.h"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "gtest/gtest.h"
#include "tests/ops/cpu_levels.h"
#include "tests/ops/gradient_check.h"

namespace thimble {
namespace {

using Block = std::array<uint32_t, 4>;
using Key = std::array<uint32_t, 2>;

// kat_vectors of Random123, philox4x32 10.
TEST(RandomTest, KnownAnswers) {
  EXPECT_EQ(Philox4x32(Block{0, 0, 0, 0}, Key{0, 0}), (Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(Philox4x32(Block{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, Key{0xffffffff, 0xffffffff}),
            (Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(Philox4x32(Block{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, Key{0xa4093822, 0x299f31d0}),
            (Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

// Counter and key are laid out as the header says, at every level, start and length, also across the block number's
// 32-bit overflow.
TEST(RandomTest, BitsAreTheBlocksOfTheHeader) {
  const uint64_t seed = 0x299f31d0a4093822, stream = 0x0370734413198a2e;
  ForEachCpuLevel([&](const std::string& level) {
    for (const uint64_t first : {uint64_t{0}, uint64_t{3}, uint64_t{0x123456789}, (uint64_t{1} << 34) - 70}) {
      for (const int64_t count : {0, 1, 2, 63, 64, 65, 200}) {
        std::vector<uint32_t> bits(count + 1, 7);
        RandomBits(seed, stream, first, count, bits.data());
        for (int64_t k = 0; k < count; ++k) {
          const uint64_t block = (first + k) / 4;
          const Block words = Philox4x32({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                                          static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)},
                                         {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
          ASSERT_EQ(bits[k], words[(first + k) % 4]) << level << " first " << first << " k " << k;
        }
        EXPECT_EQ(bits[count], 7u);
      }
    }
  });
}

TEST(RandomTest, UniformHasItsMomentsAndRange) {
  constexpr int64_t kCount = 1 << 18;
  std::vector<float> x(kCount);
  RandomUniform(1, 2, 0, -1, 3, {x.data(), kCount});
  double sum = 0, squares = 0;
  for (const float v : x) {
    ASSERT_GE(v, -1);
    ASSERT_LE(v, 3);
    sum += v;
    squares += v * v;
  }
  const double mean = sum / kCount, variance = squares / kCount - mean * mean;
  EXPECT_NEAR(mean, 1, 5 * std::sqrt(16.0 / 12 / kCount));
  EXPECT_NEAR(variance, 16.0 / 12, 5 * (16.0 / 12) / std::sqrt(1.0 * kCount));
}

TEST(RandomTest, NormalHasItsMoments) {
  constexpr int64_t kCount = 1 << 18;
  std::vector<float> x(kCount);
  RandomNormal(1, 2, 0, 0.5f, 2, {x.data(), kCount});
  double sum = 0, squares = 0, fourth = 0, neighbours = 0;
  int64_t beyond_two = 0;
  for (int64_t i = 0; i < kCount; ++i) {
    const double z = (x[i] - 0.5) / 2;
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    beyond_two += std::abs(z) > 2;
    if (i > 0) neighbours += z * (x[i - 1] - 0.5) / 2;
  }
  const double root = std::sqrt(1.0 * kCount);
  EXPECT_NEAR(sum / kCount, 0, 5 / root);
  EXPECT_NEAR(squares / kCount, 1, 5 * std::sqrt(2.0) / root);
  EXPECT_NEAR(fourth / kCount, 3, 5 * std::sqrt(96.0) / root);
  EXPECT_NEAR(neighbours / kCount, 0, 5 / root);
  EXPECT_NEAR(1.0 * beyond_two / kCount, 0.0455, 5 * 0.21 / root);
}

TEST(RandomTest, AnyCutGivesTheSameValues) {
  constexpr int64_t kCount = 5000;
  std::vector<float> uniform(kCount), normal(kCount);
  RandomUniform(9, 8, 5, 0, 1, {uniform.data(), kCount});
  RandomNormal(9, 8, 5, 0, 1, {normal.data(), kCount});
  for (const int64_t begin : {0, 1, 2, 3, 1018, 1019, 1020, 4999}) {
    for (const int64_t n : {0, 1, 2, 3, 1024}) {
      const int64_t count = std::min(n, kCount - begin);
      std::vector<float> part(count);
      RandomUniform(9, 8, 5 + begin, 0, 1, {part.data(), count});
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(part[i], uniform[begin + i]) << begin << " " << n;
      RandomNormal(9, 8, 5 + begin, 0, 1, {part.data(), count});
      for (int64_t i = 0; i < count; ++i) ASSERT_EQ(part[i], normal[begin + i]) << begin << " " << n;
    }
  }
}

TEST(RandomTest, SameBitsForAnyThreadCount) {
  ExpectSameBitsForAnyThreadCount([] {
    std::vector<float> values(100001);
    RandomUniform(3, 4, 1, 0, 1, {values.data(), 50000});
    RandomNormal(3, 4, 1, 0, 1, {values.data() + 50000, 50001});
    return values;
  });
}

}  // namespace
}  // namespace thimble
