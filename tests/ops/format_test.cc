#include "ops/format.h"

#include <cmath>
#include <cstdint>
#include <cstring>

#include "gtest/gtest.h"

namespace thimble {
namespace {

TEST(FormatTest, BF16RoundTripsEveryPattern) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float value = BF16ToFloat(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(value))));
    } else {
      EXPECT_EQ(FloatToBF16(value), bits);
    }
  }
}

TEST(FormatTest, F16RoundTripsEveryPatternAsTheCompilerDoes) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const uint16_t half_bits = static_cast<uint16_t>(bits);
    _Float16 half;
    std::memcpy(&half, &half_bits, sizeof(half));
    const float value = F16ToFloat(half_bits);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(static_cast<float>(half)));
      continue;
    }
    EXPECT_EQ(value, static_cast<float>(half));
    EXPECT_EQ(FloatToF16(value), bits);
  }
}

}  // namespace
}  // namespace thimble
